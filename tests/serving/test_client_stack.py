"""The client's commands and its awaited twin on the real topology."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Sequence
from contextlib import aclosing, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest

from llm_detox import processes
from llm_detox.bench.load import Load, bench, mixed_prompts
from llm_detox.client import AsyncTextGenerationClient, Chunk, Generation, GenerationError
from llm_detox.guard.build import ScorerGuard
from llm_detox.guard.filter import WITHHELD, AsyncGuardedClient, GuardedClient
from llm_detox.progress import visible
from tests.serving.conftest import NAME, Stack
from tests.serving.running import wait_for

ALL = ["rest", "grpc", "fmaas"]
PROMPTS = ["the quick brown fox", "naïve café ☕ 日本語", "you are"]
COMMAND = [sys.executable, "-c", "from llm_detox.cli import main; main()"]
GREEDY: dict[str, Any] = {"max_new_tokens": 16}


@pytest.mark.parametrize("protocol", ALL)
def test_awaited_answers_are_those_of_the_client_that_blocks(stack: Stack, protocol: str) -> None:
    async def ask() -> list[tuple[Generation, list[Chunk]]]:
        async with AsyncTextGenerationClient(stack.urls[protocol], NAME) as client:

            async def one(prompt: str) -> tuple[Generation, list[Chunk]]:
                answer = await client.generate(prompt, **GREEDY)
                return answer, [chunk async for chunk in client.stream(prompt, **GREEDY)]

            return await asyncio.gather(*map(one, PROMPTS))

    found = asyncio.run(ask())
    with stack.client(protocol) as client:
        for prompt, (answer, chunks) in zip(PROMPTS, found, strict=True):
            assert answer == client.generate(prompt, **GREEDY)
            assert "".join(chunk.text for chunk in chunks) == answer.text
            assert chunks[-1].generated_tokens == answer.generated_tokens


@pytest.mark.parametrize("protocol", ALL)
def test_awaited_errors_have_the_same_code(stack: Stack, protocol: str) -> None:
    async def ask(model: str, **given: Any) -> list[str]:
        codes = []
        async with AsyncTextGenerationClient(stack.urls[protocol], model) as client:
            for call in (client.generate("a", **given), anext(client.stream("a", **given))):
                with pytest.raises(GenerationError) as caught:
                    await call
                codes.append(caught.value.code)
        return codes

    assert asyncio.run(ask(NAME, max_new_tokens=5, min_new_tokens=6)) == ["INVALID_ARGUMENT"] * 2
    if protocol != "fmaas":  # TGIS serves one model and reads no name
        assert asyncio.run(ask("other")) == ["NOT_FOUND"] * 2


@pytest.mark.parametrize("protocol", ALL)
def test_cancelled_tasks_and_left_streams_free_their_places(stack: Stack, protocol: str) -> None:
    long = {"max_new_tokens": 230, "min_new_tokens": 230}

    async def leave(client: AsyncTextGenerationClient) -> None:
        async with aclosing(client.stream("the quick", **long)) as chunks:
            await anext(chunks)

    async def ask() -> Generation:
        async with AsyncTextGenerationClient(stack.urls[protocol], NAME, timeout=60) as client:
            await asyncio.gather(*(leave(client) for _ in range(40)))
            tasks = [asyncio.create_task(client.generate("the quick", **long)) for _ in range(40)]
            await asyncio.sleep(0.2)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            return await client.generate("the quick", max_new_tokens=2)

    assert asyncio.run(ask()).generated_tokens == 2


class Words:
    """Finds a word of the model's own answer toxic."""

    name = "words"

    def __init__(self, word: str) -> None:
        self._word = word

    def score(self, texts: Sequence[str]) -> list[float | None]:
        return [float(self._word in text) for text in texts]


@pytest.mark.parametrize("protocol", ALL)
def test_a_guard_lets_pass_what_passes_and_nothing_else(stack: Stack, protocol: str) -> None:
    with stack.client(protocol) as client:
        text = client.generate(PROMPTS[0], **GREEDY).text
        free, strict = (GuardedClient(client, ScorerGuard(Words(word))) for word in ("\x00", text[-2:]))
        assert free.generate(PROMPTS[0], **GREEDY).text == text
        assert "".join(piece.text for piece in free.stream(PROMPTS[0], **GREEDY)) == text
        assert strict.generate(PROMPTS[0], **GREEDY).finish_reason == WITHHELD
        pieces = list(strict.stream(PROMPTS[0], **GREEDY))
        assert pieces[-1].finish_reason == WITHHELD
        assert not "".join(piece.text for piece in pieces).endswith(text[-2:])

    async def awaited() -> str:
        async with AsyncTextGenerationClient(stack.urls[protocol], NAME) as plain:
            guarded = AsyncGuardedClient(plain, ScorerGuard(Words(text[-2:])))
            return (await guarded.generate(PROMPTS[0], **GREEDY)).finish_reason

    assert asyncio.run(awaited()) == WITHHELD


@pytest.mark.parametrize("protocol", ALL)
def test_the_measured_load_is_answered_whole(stack: Stack, protocol: str) -> None:
    load = Load([1, 8], 8, {"max_new_tokens": 12, "min_new_tokens": 12}, mixed_prompts(5))
    rows = bench({"url": stack.urls[protocol], "model_id": NAME}, load).levels
    for row, requests in zip(rows, (8, 32), strict=True):
        assert (row.requests, row.errors, row.tokens) == (requests, {}, 12 * requests)
        assert 0 < row.first_token_ms.p50 <= row.end_to_end_ms.p50
        assert row.inter_token_ms.p50 > 0


def test_the_commands_ask_and_talk(stack: Stack) -> None:
    with stack.client("rest") as client:
        text = client.generate(PROMPTS[0], max_new_tokens=8).text
    for way in (["--url", stack.urls["rest"]], ["--grpc", stack.urls["grpc"]], ["--fmaas", stack.urls["fmaas"]]):
        done = run("ask", *way, "--model", NAME, "--max-new-tokens", "8", PROMPTS[0])
        assert done.stdout == f"{visible(text)}\n"
    talk = run("chat", "--grpc", stack.urls["grpc"], "--model", NAME, "--max-new-tokens", "8", "--template",
               str(stack.artifacts), stdin="hello\nyou are\n")
    with stack.client("grpc") as client:
        first = client.generate("User: hello\nAssistant:", max_new_tokens=8, stop_sequences=["\nUser:"],
                                include_stop_sequence=False).text
    assert talk.stdout.startswith(first.lstrip())


def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*COMMAND, *arguments], input=stdin, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done


def test_the_guards_program_judges_what_the_topology_answers_and_ends_when_told(stack: Stack, tmp_path: Path) -> None:
    if find_spec("toxic_classifier") is None:
        pytest.skip("the packaged scorer is not installed (requirements/demo.txt)")
    url = f"http://127.0.0.1:{processes.free_ports(1)[0]}"
    with (tmp_path / "guard.log").open("wb") as log:
        guard = subprocess.Popen([sys.executable, "-m", "serving.guard", "--guard", "bilstm", "--port",
                                  url.rpartition(":")[2]], stdout=log, stderr=log)
    try:
        rude = {"generated_text": "You are a stupid idiot."}
        assert wait_for(lambda: _posted(f"{url}/guard", rude), 120)["guard"]["withheld"]
        said = _posted(f"{stack.urls['rest']}/api/v1/task/text-generation",
                       {"model_id": NAME, "inputs": PROMPTS[0], "parameters": GREEDY})
        passed = _posted(f"{url}/guard", said)
        assert passed["generated_tokens"] == said["generated_tokens"]
        assert passed["generated_text"] == ("" if passed["guard"]["withheld"] else said["generated_text"])
        guard.terminate()
        assert guard.wait(10) == 0
    finally:
        guard.kill()
        guard.wait()


def _posted(url: str, value: Any) -> Any:
    """The answer's JSON; None while nobody listens."""
    with suppress(httpx.ConnectError):
        answer = httpx.post(url, json=value, timeout=60, trust_env=False)
        assert answer.status_code == 200, answer.text
        return answer.json()
    return None


def test_a_judge_is_no_guard_of_a_graph() -> None:
    done = subprocess.run([sys.executable, "-m", "serving.guard", "--guard", "judge=x"], capture_output=True, text=True,
                          timeout=60)
    assert done.returncode == 2
    assert "only the answer" in done.stderr
