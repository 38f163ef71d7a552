"""Measuring a served model: the load is what was asked for, and the figures are those of the requests."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_detox.bench.load import (
    BenchReport,
    LevelFigures,
    Load,
    Sample,
    bench,
    distribution,
    mixed_prompts,
    percentile,
    summary,
)
from llm_detox.bench.page import lines, page, warnings
from llm_detox.client import GenerationError
from llm_detox.guard.filter import GuardVerdict
from tests.helpers.answering import caikit, event, http_server, openai, reply

COMMAND = [sys.executable, "-c", "from llm_detox.cli import main; main()", "bench", "serve"]


class Watched:
    """Counts the requests, and how many were there at once."""

    def __init__(self, answer: Callable[[Any], None], seconds: float = 0.0) -> None:
        self._answer, self._seconds, self._lock = answer, seconds, threading.Lock()
        self.count = self.together = self.most = 0
        self.prompts: list[str] = []

    def __call__(self, handler: Any) -> None:
        with self._lock:
            self.count += 1
            self.together += 1
            self.most = max(self.most, self.together)
            self.prompts.append(handler.asked().get("inputs") or handler.asked().get("prompt"))
        time.sleep(self._seconds)
        with self._lock:
            self.together -= 1
        self._answer(handler)


def load(*levels: int, requests: int = 4, streams: bool = True, prompts: int = 3) -> Load:
    return Load(levels, requests, {"max_new_tokens": 3}, mixed_prompts(prompts), streams)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.integers(0, 100))
def test_percentiles_are_numpys(values: list[float], share: int) -> None:
    assert percentile(sorted(values), share) == pytest.approx(np.percentile(values, share))


def test_a_row_counts_what_came_and_names_what_failed() -> None:
    good = [Sample(2.0, first=0.5, gaps=[0.5, 1.0], tokens=3), Sample(4.0, first=1.5, gaps=[2.5], tokens=2)]
    samples = [*good, Sample(0.1, code="UNAVAILABLE", tokens=9), Sample(0.1, code="UNAVAILABLE"),
               Sample(60.0, code="INTERNAL")]
    row = summary(samples, 2, seconds=5.0, busy=0.25)
    assert row.errors == {"INTERNAL": 1, "UNAVAILABLE": 2}
    assert (row.requests, row.tokens, row.tokens_per_second, row.requests_per_second) == (5, 5, 1.0, 0.4)
    assert row.end_to_end_ms.p50 == 3000
    assert row.first_token_ms.mean == 1000
    assert row.inter_token_ms.p50 == 1000
    assert row.guard_ms is None
    assert distribution([]) is None


@contextmanager
def slow_stream() -> Iterator[str]:
    """The first piece after 0.2 s, then three more, one every 0.1 s."""

    def answer(handler: Any) -> None:
        if "streaming" not in handler.path:
            caikit(["x"])(handler)
            return
        handler.send_response(200)
        handler.end_headers()
        time.sleep(0.1)
        for number in range(1, 5):
            time.sleep(0.1)
            handler.wfile.write(event("x", "NOT_FINISHED" if number < 4 else "MAX_TOKENS", number))

    with http_server(answer) as url:
        yield url


def test_times_are_those_of_the_pieces() -> None:
    with slow_stream() as url:
        row = bench({"url": url, "model_id": "x"}, load(2)).levels[0]
    assert 200 <= row.first_token_ms.p50 < 500  # a busy machine adds to it
    assert 100 <= row.inter_token_ms.p50 < 200
    assert 500 <= row.end_to_end_ms.p50 < 1500
    assert row.requests == 8
    assert row.tokens == 32
    assert row.tokens_per_second == pytest.approx(32 / row.seconds)


@pytest.mark.parametrize("streams", [True, False])
def test_so_many_requests_are_in_flight_and_every_level_asks_the_same(streams: bool) -> None:
    watched = Watched(caikit(["a", " b", " c"]), seconds=0.05)
    with http_server(watched) as url:
        rows = bench({"url": url, "model_id": "x"}, load(1, 6, requests=5, streams=streams, prompts=4)).levels
    assert watched.most == 6
    assert [row.requests for row in rows] == [5, 24]
    assert all((row.first_token_ms is not None) == streams for row in rows)
    asked = watched.prompts[-29:]
    assert asked[:4] == mixed_prompts(4)
    assert {prompt: asked[5:].count(prompt) for prompt in set(asked)} == dict.fromkeys(mixed_prompts(4), 6)


def test_tokens_of_openai_servers_are_counted_by_their_last_word() -> None:
    with http_server(openai(["a", " b", " c"])) as url:
        row = bench({"url": f"openai+{url}", "model_id": "x"}, load(1)).levels[0]
    assert row.tokens == 3 * row.requests
    with http_server(openai(["a", " b", " c"], usage=False)) as url:
        row = bench({"url": f"openai+{url}", "model_id": "x"}, load(1)).levels[0]
    assert row.tokens == 3 * row.requests, "without counts each piece is a token"


def test_failures_are_counted_and_not_repeated() -> None:
    def answer(handler: Any) -> None:
        if watched.count > 4 and watched.count % 2:  # the first ones show that the server is there
            reply(handler, 503, b"{}")
        else:
            caikit(["a"])(handler)

    watched = Watched(answer)
    with http_server(watched) as url:
        row = bench({"url": url, "model_id": "x"}, load(1, requests=20)).levels[0]
    assert row.errors == {"UNAVAILABLE": 10}
    assert watched.count == 20 + 1 + 3, "the level, one request before, and as many warm-ups as there are prompts"


def test_a_server_that_does_not_answer_is_told_at_once() -> None:
    with pytest.raises(GenerationError, match=r"127\.0\.0\.1:9"):
        bench({"url": "http://127.0.0.1:9", "model_id": "x"}, load(4))


class Slow:
    """A guard that takes its time and withholds every answer with a b."""

    name, by_sentence = "slow", True

    def judge(self, prompt: Any, shown: str, sentences: Any) -> GuardVerdict:
        time.sleep(0.05)
        return GuardVerdict("b" in "".join(sentences), "b")


@pytest.mark.parametrize("streams", [True, False])
def test_the_guards_cost_stands_beside_the_same_level_without_it(streams: bool) -> None:
    with http_server(caikit(["a. ", "b. "])) as url:
        rows = bench({"url": url, "model_id": "x"}, load(2, streams=streams), Slow()).levels
    assert [row.way for row in rows] == ["plain", "guarded"]
    plain, guarded = rows
    assert plain.guard_ms is None
    assert guarded.guard_ms.p50 >= 50
    assert guarded.end_to_end_ms.p50 >= plain.end_to_end_ms.p50 + 45
    assert (plain.withheld, guarded.withheld) == (0, 8)


def row(level: int, way: str = "plain", **more: Any) -> LevelFigures:
    samples = [Sample(1.0 + n / 100, first=0.1, gaps=[0.01], tokens=2) for n in range(120)]
    return replace(summary(samples, level, 10.0, 0.1, way), **more)


def result(*rows: LevelFigures, interrupted: bool = False) -> BenchReport:
    return BenchReport("http://h", "<m>", "2 tokens", None, list(rows), interrupted)


def test_the_page_stands_alone_and_shows_every_level() -> None:
    html = page(result(row(1), row(16), row(1, "guarded", guard_ms=distribution([0.01]))))
    assert "&lt;m&gt;" in html
    assert "<m>" not in html
    assert not re.search(r"""(src|href)\s*=|https?://(?!h,)""", html.replace("http://h", ""))
    assert html.count("<svg") == 5
    assert html.count("<tr>") == 4
    for name in ("plain p99", "guarded p50", "tokens a second", "judging an answer"):
        assert name in html, name
    assert "{" not in page(result(row(1))).partition("<body>")[2].partition("<script>")[0]


def test_a_reader_is_warned_of_what_the_figures_do_not_say() -> None:
    assert list(warnings(result(row(1)))) == []
    said = " ".join(warnings(result(row(4, client_busy=0.97, requests=40), interrupted=True)))
    assert "with 4 in flight this client was busy" in said
    assert "p99" in said
    assert "interrupted" in said
    assert any("TIMEOUT 3" in line for line in lines(result(row(4, errors={"TIMEOUT": 3}))))


def test_the_command_writes_json_and_a_page_and_refuses_to_write_over_them(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "one"}\n{"prompt": {"text": "two"}}\n', "utf-8")
    watched = Watched(caikit(["a", "b"]))
    with http_server(watched) as url:
        command = [*COMMAND, "--url", url, "--levels", "1,2", "--requests", "2", "--tokens", "2", "--prompts",
                   str(prompts), "--output", str(tmp_path / "out"), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        again = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    printed, written = json.loads(done.stdout), json.loads((tmp_path / "out/bench.json").read_text("utf-8"))
    assert printed == written
    assert [level["in_flight"] for level in written["levels"]] == [1, 2]
    assert "<svg" in (tmp_path / "out/bench.html").read_text("utf-8")
    assert set(watched.prompts) == {"one", "two"}
    assert again.returncode == 1
    assert "exists already" in again.stdout


@pytest.mark.parametrize("levels", ["", "a", "0", "1,,2"])
def test_levels_that_are_none_are_refused(levels: str) -> None:
    done = subprocess.run([*COMMAND, "--url", "http://127.0.0.1:9", "--levels", levels], capture_output=True, text=True,
                          timeout=60)
    assert done.returncode == 2
    assert "--levels" in done.stderr


def test_ctrl_c_keeps_the_levels_that_are_done(tmp_path: Path) -> None:
    watched = Watched(caikit(["a"]), seconds=0.02)

    def slower(handler: Any) -> None:
        if watched.count > 30:
            slow.set()
            time.sleep(1)
        watched(handler)

    slow = threading.Event()
    with http_server(slower) as url:
        process = subprocess.Popen(
            [*COMMAND, "--url", url, "--levels", "1,4", "--requests", "20", "--output", str(tmp_path / "out")],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert slow.wait(30)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=30)
    assert process.returncode == 130, error
    assert "interrupted" in out
    assert [row["in_flight"] for row in json.loads((tmp_path / "out/bench.json").read_text("utf-8"))["levels"]] == [1]
