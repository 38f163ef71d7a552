"""A published model that somebody with rights in the store has changed: do fetch and serving pod refuse it?

    python -m benchmarks.campaigns.tampered_model [--bytes 8] [--seed 7]

A model is published to a real store (SeaweedFS). Then each of its files has single bytes changed, is cut, grows, is
emptied, removed or exchanged with another, files are added, the list of checksums is another model's, and the pointer
leads elsewhere. After each change the model is fetched, by its pointer and by its version, and compared as a serving
pod compares what it was given. Both must refuse it, or have exactly what was published; the exit code is 1 where one
gives something else, or ends with another error than a message.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.campaigns.ending import ended
from llm_detox.errors import DetoxError
from llm_detox.processes import environment
from llm_detox.storage import fetch_model, publish
from llm_detox.storage.publishing import Publication
from llm_detox.storage.s3 import Place, connect
from llm_detox.storage.seaweed import seaweed
from serving.caikit import checksums

_BUCKET = "models"
_ADDED = ("artifacts/modeling_evil.py", "artifacts/model-00009-of-00009.safetensors", ".hidden", "artifacts/sub/x.bin",
          "artifacts/sub/checksums.json", "pytorch_model.bin")
Changes = Mapping[str, bytes | None]
"""Key below the model's place -> its new content; None removes it."""


@dataclass(frozen=True)
class Case:
    """One change: of which kind, to what, and what is written."""

    kind: str
    name: str
    changes: Changes


@dataclass
class Tally:
    """What happened: kind -> number of cases, of those refused by fetch and by pod; and whatever should not have."""

    cases: Counter[str] = field(default_factory=Counter)
    fetch: Counter[str] = field(default_factory=Counter)
    pod: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


class Target:
    """The published model, and what the store holds of it."""

    def __init__(self, url: str, published: Publication, folder: Path) -> None:
        self.place, self.published, self.folder = Place.parse(url), published, folder
        self.client = connect()
        self.objects = self._read()

    def write(self, changes: Changes) -> None:
        for name, content in changes.items():
            at = {"Bucket": self.place.bucket, "Key": (self.place / name).key}
            if content is None:
                self.client.delete_object(**at)
            else:
                self.client.put_object(**at, Body=content)

    def restore(self, changes: Changes) -> None:
        self.write({name: self.objects.get(name) for name in changes})

    def download(self, to: Path) -> None:
        """The version as a storage initializer brings it: all that lies there, unseen."""
        prefix = f"{self.published.digest}/"
        for name, content in self._read().items():
            if name.startswith(prefix):
                path = to / name.removeprefix(prefix)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)

    def is_whole(self, folder: Path) -> bool:
        """Whether a folder has what was published, and nothing else but lists of checksums."""
        return _contents(folder) == _contents(self.folder)

    def _read(self) -> dict[str, bytes]:
        prefix = f"{self.place.key}/"
        listed = self.client.list_objects_v2(Bucket=self.place.bucket, Prefix=prefix)["Contents"]
        return {one["Key"].removeprefix(prefix): self.client.get_object(
            Bucket=self.place.bucket, Key=one["Key"])["Body"].read() for one in listed}


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*")
            if path.is_file() and path not in (folder / checksums.INDEX, folder / "artifacts" / checksums.INDEX)}


def make_model(folder: Path, rng: random.Random) -> Path:
    """A folder of the shape of a Caikit model, with random bytes for weights."""
    (folder / "artifacts").mkdir(parents=True)
    for name, size in {"config.yml": 40, "artifacts/config.json": 300, "artifacts/tokenizer.json": 2000,
                       "artifacts/model-00001-of-00002.safetensors": 30_000,
                       "artifacts/model-00002-of-00002.safetensors": 30_000}.items():
        (folder / name).write_bytes(rng.randbytes(size))
    return folder


def cases(target: Target, other: Target, each: int, rng: random.Random) -> Iterator[Case]:
    """All changes, `each` single bytes a file; `other` is another model in the same store."""
    digest = target.published.digest
    index, files = f"{digest}/{checksums.INDEX}", [name for name in target.objects if name.startswith(f"{digest}/")]
    models = [name for name in files if not name.endswith(checksums.INDEX)]
    for name in [*files, "latest.json"]:
        content = target.objects[name]
        for _ in range(each):
            place = rng.randrange(len(content))
            changed = content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1:]
            yield Case("a byte changed", f"{name}, byte {place}", {name: changed})
        for kind, damaged in (("cut", content[:rng.randrange(1, len(content))]), ("longer", content + b"x"),
                              ("empty", b""), ("removed", None)):
            yield Case(kind, name, {name: damaged})
    for name in _ADDED:
        yield Case("a file added", name, {f"{digest}/{name}": rng.randbytes(20)})
    for one, two in pairwise(models):
        yield Case("two files exchanged", f"{one}, {two}", {one: target.objects[two], two: target.objects[one]})
    foreign = other.objects[f"{other.published.digest}/{checksums.INDEX}"]
    yield Case("another model's list", index, {index: foreign, f"{digest}/artifacts/{checksums.INDEX}": foreign})
    for leads in (f"../other/{other.published.digest}", other.published.digest, "0" * 32, "", "..", digest.upper()):
        pointer: dict[str, Any] = json.loads(target.objects["latest.json"])
        pointer["digest"] = leads
        pointer["versions"][0]["address"] = other.published.address
        yield Case("the pointer leads elsewhere", leads, {"latest.json": json.dumps(pointer).encode()})


def attack(target: Target, case: Case, scratch: Path, tally: Tally) -> None:
    """Make a change, let everybody take the model, and put back what was there."""
    tally.cases[case.kind] += 1
    target.write(case.changes)
    try:
        refused = [_fetch(target, address, scratch / f"fetched-{number}", case, tally) for number, address in enumerate(
            (str(target.place), target.published.address))]
        tally.fetch[case.kind] += any(refused)
        tally.pod[case.kind] += _serve(target, scratch / "pod", case, tally)
    finally:
        target.restore(case.changes)
        for folder in scratch.iterdir():
            shutil.rmtree(folder)


def _fetch(target: Target, address: str, to: Path, case: Case, tally: Tally) -> bool:
    """Whether a fetch refuses."""
    try:
        fetch_model(address, to)
    except DetoxError:
        if to.exists():
            tally.problems.append(f"{case.kind}, {case.name}: fetch refused and left a folder")
        return True
    except Exception as error:
        tally.problems.append(f"{case.kind}, {case.name}: fetch of {address} ended with {error!r:.200}")
        return False
    if not target.is_whole(to):
        tally.problems.append(f"{case.kind}, {case.name}: fetch of {address} gave something else")
    return False


def _serve(target: Target, to: Path, case: Case, tally: Tally) -> bool:
    """Whether a pod refuses, one that is given the version or one that is given the folder inside."""
    target.download(to)
    refused = False
    for folder in (to, to / "artifacts"):
        try:
            checksums.compare(folder, target.published.digest)
        except checksums.NotAsPublished:
            refused = True
            continue
        except Exception as error:
            tally.problems.append(f"{case.kind}, {case.name}: the pod ended with {error!r:.200}")
            continue
        if _contents(folder) != _contents(target.folder / folder.relative_to(to)):
            tally.problems.append(f"{case.kind}, {case.name}: the pod would serve something else")
    return refused


def run(*, each: int, seed: int) -> Tally:
    """The whole campaign, in a store of its own."""
    rng, tally = random.Random(seed), Tally()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        with seaweed(work / "store", buckets=[_BUCKET]) as store, environment(store.env()):
            targets = []
            for model in ("model", "other"):
                url, folder = f"s3://{_BUCKET}/{model}", make_model(work / model, rng)
                targets.append(Target(url, publish(folder, url), folder))
            (work / "scratch").mkdir()
            for case in cases(*targets, each, rng):
                attack(targets[0], case, work / "scratch", tally)
    return tally


def table(tally: Tally) -> str:
    """The tally as a Markdown table."""
    rows = [f"| {kind} | {count} | {tally.fetch[kind]} | {tally.pod[kind]} |" for kind, count in tally.cases.items()]
    return "\n".join(["| change | cases | fetch refuses | pod refuses |", "|---|---|---|---|", *rows])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=int, default=8, help="single bytes that are changed in each file")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    tally = run(each=options.bytes, seed=options.seed)
    print(table(tally))
    return ended(tally.problems, f"tampered model: {tally.cases.total()} changes, seed {options.seed}")


if __name__ == "__main__":
    sys.exit(main())
