"""The clients of the soak test, and what is read of the processes meanwhile."""

from __future__ import annotations

import collections
import itertools
import random
import statistics
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from llm_detox.client import GenerationError, TextGenerationClient
from tests.serving.running import STREAM

# What a request may end with while the engine is away.
INTERRUPTED = {"UNAVAILABLE", "CANCELLED"}
LEAVES = 0.25


@dataclass
class Outage:
    """When the engine was away: from the signal until it was ready again. `over` is none while it is."""

    began: float
    over: float | None = None


@dataclass
class Log:
    """What one client has seen."""

    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


class Client(threading.Thread):
    """Asks, streams, leaves and checks, until told to stop.

    Args:
        number: its own, which also is the seed of what it does.
        url: the protocol and server.
        model_id: the name under which the model answers.
        expected: (prompt, number of tokens) -> the text that greedy decoding gives.
        stop: ends it after the request in progress.
        outages: of the engine, so far.
    """

    def __init__(self, number: int, url: str, model_id: str, expected: dict[tuple[str, int], str],
                 stop: threading.Event, outages: list[Outage]) -> None:
        super().__init__(daemon=True)
        self.chance, self.url, self.model_id, self.expected = random.Random(number), url, model_id, expected
        self.stop, self.outages, self.log = stop, outages, Log()
        self.protocol = url.partition(":")[0]
        self.client = self._connect()

    def run(self) -> None:
        while not self.stop.is_set():
            prompt, length = self.chance.choice(list(self.expected))
            started = time.monotonic()
            try:
                if self.chance.random() < LEAVES:
                    self._leave(prompt, length)
                    self.log.counts["left"] += 1
                else:
                    self._ask(prompt, length)
                    self.log.counts["answered"] += 1
                    self.log.seconds.append(time.monotonic() - started)
            except GenerationError as error:
                self._note(error, started)
        self.client.close()

    def _connect(self) -> TextGenerationClient:
        return TextGenerationClient(self.url, self.model_id, timeout=120, retries=0)

    def _ask(self, prompt: str, length: int) -> None:
        given: Any = {"max_new_tokens": length, "min_new_tokens": length}
        if self.chance.random() < 0.5:
            found = self.client.generate(prompt, **given).text
        else:
            found = "".join(chunk.text for chunk in self.client.stream(prompt, **given))
        if found != self.expected[prompt, length]:
            self.log.wrong.append(f"{self.protocol}: {prompt!r} at {length}: {found!r}")

    def _leave(self, prompt: str, length: int) -> None:
        given: Any = {"max_new_tokens": length, "min_new_tokens": length}
        how = self.chance.choice(["cancel", "cancel", "deadline", "disconnect"])
        if how == "deadline":
            with TextGenerationClient(self.url, self.model_id, timeout=self.chance.uniform(0.01, 0.3),
                                      retries=0) as hasty:
                try:
                    hasty.generate(prompt, **given)
                except GenerationError as error:
                    if error.code != "DEADLINE_EXCEEDED":
                        raise
        elif how == "disconnect" and self.protocol == "http":
            self._hang_up(prompt, given)
        else:
            seen, pieces = "", self.client.stream(prompt, **given)
            for chunk in itertools.islice(pieces, self.chance.randint(1, 4)):
                seen += chunk.text
            if not self.expected[prompt, length].startswith(seen):
                self.log.wrong.append(f"{self.protocol}: {prompt!r} at {length} began with {seen!r}")
            if how == "cancel":
                pieces.close()  # type: ignore[attr-defined]
            else:
                self.client.close()
                self.client = self._connect()

    def _hang_up(self, prompt: str, given: dict[str, Any]) -> None:
        body = {"model_id": self.model_id, "inputs": prompt, "parameters": given}
        try:
            with (httpx.Client(trust_env=False, timeout=120) as client,
                  client.stream("POST", f"{self.url}{STREAM}", json=body) as answer):
                next(answer.iter_bytes(), b"")
        except httpx.TransportError as error:
            raise GenerationError("UNAVAILABLE", str(error), place=self.url) from None

    def _note(self, error: GenerationError, started: float) -> None:
        now = time.monotonic()
        met = any(started <= (one.over or now) and one.began <= now for one in self.outages)
        if met and error.code in INTERRUPTED:
            self.log.counts[f"interrupted: {error.code}"] += 1
            time.sleep(0.5)
        else:
            self.log.wrong.append(f"{self.protocol}: {error.code}: {error.message}")


class Watched:
    """A process whose memory, threads and open files are noted now and then."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.seen: list[tuple[int, int, int]] = []

    def note(self) -> None:
        status = Path(f"/proc/{self.pid}/status").read_text()
        values = dict(line.split(":", 1) for line in status.splitlines())
        self.seen.append((int(values["VmRSS"].split()[0]), int(values["Threads"]),
                          len(list(Path(f"/proc/{self.pid}/fd").iterdir()))))

    def figures(self) -> dict[str, Any]:
        """Medians of an early window (the second quarter, past the warm-up) and of the last quarter."""
        quarter = max(1, len(self.seen) // 4)
        early, late = self.seen[quarter : 2 * quarter] or self.seen, self.seen[-quarter:]
        names = ("rss_kib", "threads", "open_files")
        return {"samples": len(self.seen), **{name: {
            "early": statistics.median(one[i] for one in early), "late": statistics.median(one[i] for one in late),
            "most": max(one[i] for one in self.seen)} for i, name in enumerate(names)}}
