"""Publish and fetch while the store and the way to it fail: each ends right, or with one clear message.

    python -m benchmarks.campaigns.failing_store [--each 2] [--seed 7]

A proxy stands before a real store (SeaweedFS) and fails from a random request on, once, three times or for good: errors
of the store, broken and lost answers, slow and short ones, a wrong clock, expired credentials; or somebody else writes
over the weights between two of their parts. A call that returns must have published, or fetched, exactly the model;
one that does not must say what is wrong and what helps, and leave nothing half done: who fetches then gets the old
version or the new one, whole, and the next call, with the faults gone, succeeds. The exit code is 1 where something
else happens. The waiting for a store (`llm_detox.storage.patience`) is shortened to two seconds.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

from benchmarks.campaigns.ending import ended
from llm_detox.errors import DetoxError
from llm_detox.processes import environment
from llm_detox.storage import fetch_model, publish
from llm_detox.storage.s3 import Place, connect
from llm_detox.storage.seaweed import Seaweed, seaweed
from tests.helpers.faultproxy import Fault, Lost, Proxy, Request, Reset, Short, Slow, Stall, Status, fault_proxy

_BUCKET, _WEIGHTS = "models", "artifacts/model.safetensors"
_PART, _BYTES = 5 * 2**20, 6 * 2**20  # the weights go in two parts
_SHORTENED = {"PATIENCE_SECONDS": 1.5, "READ_SECONDS": 1.0, "CONNECT_SECONDS": 1.0}
LONGEST_SECONDS = 15.0
FAULTS: dict[str, Fault] = {
    "500 InternalError": Status(500, "InternalError"), "503 SlowDown": Status(503, "SlowDown"),
    "request broken off": Reset(), "answer broken off": Reset(late=True), "answer lost": Lost(), "slow": Slow(0.4),
    "silence": Stall(1.6), "short body": Short(), "clock is wrong": Status(403, "RequestTimeTooSkewed"),
    "credentials have expired": Status(400, "ExpiredToken")}
CHANGED = "object changed between two parts"
TIMES = (1, 3, 10**6)
PUBLISH, FETCH = "publish", "fetch"


@dataclass(frozen=True)
class Case:
    """One call through a failing proxy.

    Attributes:
        fault: name of the fault.
        action: `publish` or `fetch`.
        begins: the request that fails first, counted from 0.
        times: how many requests fail.
        seed: of the model.
    """

    fault: str
    action: str
    begins: int
    times: int
    seed: int

    def __str__(self) -> str:
        return f"{self.action}, {self.fault}, request {self.begins}, {self.times} times, model {self.seed}"


@dataclass
class Tally:
    """What happened: (fault, action) -> cases, and those that ended right; and whatever should not have."""

    cases: Counter[tuple[str, str]] = field(default_factory=Counter)
    right: Counter[tuple[str, str]] = field(default_factory=Counter)
    slowest: float = 0.0
    problems: list[str] = field(default_factory=list)


def make_model(folder: Path, seed: int, size: int = _BYTES) -> Path:
    """A folder of the shape of a Caikit model, with random bytes."""
    rng = random.Random(seed)
    (folder / "artifacts").mkdir(parents=True)
    for name, length in {"config.yml": 40, "artifacts/config.json": 300, "artifacts/tokenizer.json": 2_000,
                         _WEIGHTS: size}.items():
        (folder / name).write_bytes(rng.randbytes(length))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a model, without the list of their checksums."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*")
            if path.is_file() and path.name != "checksums.json"}


class Bench:
    """A store, the proxy before it, and a place of its own for each case."""

    def __init__(self, store: Seaweed, proxy: Proxy, work: Path) -> None:
        self.store, self.proxy, self.work = store, proxy, work

    @contextmanager
    def direct(self) -> Iterator[None]:
        """Past the proxy."""
        with environment(self.store.env()):
            yield

    def arm(self, case: Case, url: str) -> None:
        """Let the proxy fail as the case says, from its next request on."""
        first, fault = len(self.proxy.seen) + case.begins, FAULTS.get(case.fault)
        done: list[Request] = []

        def decide(request: Request) -> Fault:
            if case.fault == CHANGED:
                if not done and self._is_second_part(request):
                    done.append(request)
                    self._write_over(url, request)
                return None
            with self.proxy.lock:
                if request.number >= first and len(done) < case.times:
                    done.append(request)
                    return fault
            return None

        self.proxy.decide = decide

    def disarm(self) -> None:
        self.proxy.decide = lambda request: None

    def _is_second_part(self, request: Request) -> bool:
        parts = [one for one in self.proxy.seen[-20:] if _WEIGHTS in one.path and one.method == request.method
                 and (one.method == "GET" or "partNumber" in one.path)]
        return _WEIGHTS in request.path and len(parts) >= 2 and request in parts

    def _write_over(self, url: str, request: Request) -> None:
        key = request.path.partition("?")[0].removeprefix(f"/{_BUCKET}/")
        connect(self.store.env()).put_object(Bucket=_BUCKET, Key=key, Body=random.Random(url).randbytes(_BYTES))

    def remove(self, url: str) -> None:
        """All objects of a place."""
        client, place = connect(self.store.env()), Place.parse(url)
        for one in client.list_objects_v2(Bucket=place.bucket, Prefix=f"{place.key}/").get("Contents", []):
            client.delete_object(Bucket=place.bucket, Key=one["Key"])


def attempt(call: Callable[[], object], case: Case, tally: Tally) -> bool:
    """Make the call; whether it returned. What it raises but a clear message is a problem, and so is a long wait."""
    started, returned = time.monotonic(), False
    try:
        call()
        returned = True
    except DetoxError as error:
        if not (error.message and error.place and error.remedy):
            tally.problems.append(f"{case}: a message without place or remedy: {error}")
    except Exception as error:
        tally.problems.append(f"{case}: ended with {error!r:.300}")
    tally.slowest = max(tally.slowest, time.monotonic() - started)
    if time.monotonic() - started > LONGEST_SECONDS:
        tally.problems.append(f"{case}: took {time.monotonic() - started:.0f} s")
    return returned


def try_publish(bench: Bench, case: Case, url: str, old: Path, new: Path, tally: Tally) -> bool:
    """Publish over an older version; whoever fetches then has one of the two, whole."""
    bench.arm(case, url)
    returned = attempt(lambda: publish(new, url), case, tally)
    bench.disarm()
    back, expected = bench.work / "back", [contents(new)] if returned else [contents(old), contents(new)]
    with bench.direct():
        if case.fault != CHANGED or returned:
            fetch_model(url, back)
            if contents(back) not in expected:
                tally.problems.append(f"{case}: the store has something else behind its pointer")
        publish(new, url)
        fetch_model(url, bench.work / "again")
        if contents(bench.work / "again") != contents(new):
            tally.problems.append(f"{case}: published again, it is something else")
    return returned


def try_fetch(bench: Bench, case: Case, url: str, new: Path, tally: Tally) -> bool:
    """Fetch, and once more with the faults gone."""
    with bench.direct():
        publish(new, url)
    back = bench.work / "back"
    bench.arm(case, url)
    returned = attempt(lambda: fetch_model(url, back), case, tally)
    bench.disarm()
    if back.exists() != returned:
        tally.problems.append(f"{case}: {'nothing was' if returned else 'a folder was'} left")
    with bench.direct():
        if not returned:
            publish(new, url)  # mends what was written over
            fetch_model(url, back)
    if contents(back) != contents(new):
        tally.problems.append(f"{case}: something else was fetched")
    return returned


def run_case(bench: Bench, case: Case, number: int, tally: Tally) -> None:
    """One case, in a place of its own."""
    url = f"s3://{_BUCKET}/case-{number}"
    new = make_model(bench.work / "new", case.seed)
    try:
        if case.action == PUBLISH:
            old = make_model(bench.work / "old", case.seed + 1, size=1_000)
            with bench.direct():
                publish(old, url)
            returned = try_publish(bench, case, url, old, new, tally)
        else:
            returned = try_fetch(bench, case, url, new, tally)
        tally.right[case.fault, case.action] += returned
        tally.cases[case.fault, case.action] += 1
    except DetoxError as error:
        tally.problems.append(f"{case}: without faults: {error}")
    finally:
        bench.disarm()
        bench.remove(url)
        for path in bench.work.iterdir():
            shutil.rmtree(path)


def requests_of(bench: Bench) -> dict[str, int]:
    """How many requests each action makes when nothing fails."""
    model, url = make_model(bench.work / "new", 0), f"s3://{_BUCKET}/counted"
    counts = {}
    calls: dict[str, Callable[[], object]] = {PUBLISH: lambda: publish(model, url),
                                              FETCH: lambda: fetch_model(url, bench.work / "back")}
    for action, call in calls.items():
        before = len(bench.proxy.seen)
        call()
        counts[action] = len(bench.proxy.seen) - before
    bench.remove(url)
    for path in bench.work.iterdir():
        shutil.rmtree(path)
    return counts


def cases(counts: dict[str, int], each: int, rng: random.Random) -> Iterator[Case]:
    """All of them: each fault in each action, for each number of failing requests."""
    for action in (PUBLISH, FETCH):
        for fault in (*FAULTS, CHANGED):
            for times in TIMES if fault != CHANGED else (1,):
                for _ in range(each):
                    yield Case(fault, action, rng.randrange(counts[action]), times, rng.randrange(10**6))


@contextmanager
def bench_of(work: Path) -> Iterator[Bench]:
    """A store with its proxy; patience is short, and parts are small."""
    with ExitStack() as stack:
        store = stack.enter_context(seaweed(work / "store", buckets=[_BUCKET]))
        proxy = stack.enter_context(fault_proxy(store.endpoint))
        stack.enter_context(environment({**store.env(), "AWS_S3_ENDPOINT": proxy.url, "AWS_ENDPOINT_URL_S3": proxy.url,
                                         "LLM_DETOX_CACHE": str(work / "cache")}))
        for name, seconds in _SHORTENED.items():
            stack.enter_context(patch(f"llm_detox.storage.patience.{name}", seconds))
        for module in ("patience", "pointer", "transfer"):
            stack.enter_context(patch(f"llm_detox.storage.{module}.pause_seconds", lambda attempt: 0.02))
        for module in ("publishing", "fetch"):
            stack.enter_context(patch(f"llm_detox.storage.{module}.part_size", lambda largest: _PART))
        (work / "scratch").mkdir()
        yield Bench(store, proxy, work / "scratch")


def run(*, each: int, seed: int) -> Tally:
    """The whole campaign."""
    rng, tally = random.Random(seed), Tally()
    with tempfile.TemporaryDirectory() as name, bench_of(Path(name)) as bench:
        for number, case in enumerate(cases(requests_of(bench), each, rng)):
            run_case(bench, case, number, tally)
    return tally


def table(tally: Tally) -> str:
    """The tally as a Markdown table."""
    rows = []
    for fault in (*FAULTS, CHANGED):
        columns = [f"{tally.cases[fault, action]} | {tally.right[fault, action]}" for action in (PUBLISH, FETCH)]
        rows.append(f"| {fault} | {' | '.join(columns)} |")
    return "\n".join(["| fault | publish | ended right | fetch | ended right |", "|---|---|---|---|---|", *rows])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=2, help="cases of each fault, action and number of failures")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    tally = run(each=options.each, seed=options.seed)
    print(table(tally))
    return ended(tally.problems, f"failing store: {tally.cases.total()} calls, {tally.right.total()} ended right, the "
                                 f"others with a message, slowest {tally.slowest:.1f} s, seed {options.seed}")


if __name__ == "__main__":
    sys.exit(main())
