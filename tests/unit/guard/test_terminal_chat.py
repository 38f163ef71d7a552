"""A conversation in the terminal: what is sent each time, and what Ctrl-C ends."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_detox.client import GenerationError, TextGenerationClient
from llm_detox.guard.filter import GuardedClient, GuardVerdict
from llm_detox.guard.terminal_chat import chat
from tests.helpers.answering import caikit, event, http_server, openai, reply
from tests.helpers.tiny import save_tiny_chat_llama


def lines(*given: str | type[BaseException]) -> Callable[[str], str]:
    """Reads these; a class of exceptions is raised where it stands."""
    left = iter(given)

    def read(prompt: str) -> str:
        line = next(left, EOFError)
        if isinstance(line, str):
            return line
        raise line

    return read


@pytest.fixture
def asked() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def caikit_url(asked: list[dict[str, Any]]) -> Iterator[str]:
    def answer(handler: Any) -> None:
        asked.append(handler.asked())
        caikit([" An", "swer", f" {len(asked)}."])(handler)

    with http_server(answer) as url:
        yield url


def test_without_a_template_turns_are_lines_and_the_answer_ends_with_its_own(
        caikit_url: str, asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    with TextGenerationClient(caikit_url, "x") as client:
        chat(client, {"max_new_tokens": 9}, system="Be kind.", read=lines("Hello", "", "More"), interactive=False)
    assert capsys.readouterr().out == "Answer 1.\nAnswer 2.\n"
    assert [one["inputs"] for one in asked] == [
        "System: Be kind.\nUser: Hello\nAssistant:",
        "System: Be kind.\nUser: Hello\nAssistant: Answer 1.\nUser: More\nAssistant:"]
    assert asked[0]["parameters"] == {
        "max_new_tokens": 9, "stop_sequences": ["\nUser:"], "include_stop_sequence": False}


def test_a_new_conversation_remembers_nothing_but_the_system_prompt(
        caikit_url: str, asked: list[dict[str, Any]]) -> None:
    with TextGenerationClient(caikit_url, "x") as client:
        chat(client, {}, system="Be kind.", read=lines("Hello", "/new", "More", "/exit", "never"), interactive=True)
    assert [one["inputs"] for one in asked][1:] == ["System: Be kind.\nUser: More\nAssistant:"]


def test_a_server_that_takes_messages_gets_them(asked: list[dict[str, Any]]) -> None:
    def answer(handler: Any) -> None:
        asked.append(handler.asked())
        openai(["Fine", "."])(handler)

    with http_server(answer) as url, TextGenerationClient(f"openai+{url}", "m") as client:
        chat(client, {}, read=lines("Hello", "More"), interactive=False)
    assert asked[1]["messages"] == [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Fine."},
                                    {"role": "user", "content": "More"}]
    assert "stop" not in asked[0]


def test_the_models_own_template_makes_the_prompts(caikit_url: str, asked: list[dict[str, Any]],
                                                   tmp_path: Path) -> None:
    model = save_tiny_chat_llama(tmp_path / "llama")
    with TextGenerationClient(caikit_url, "x") as client:
        chat(client, {}, template=str(model), system="Be kind.", read=lines("Hello", "More"), interactive=False)
    assert asked[1]["inputs"] == "[system]Be kind.[user]Hello[assistant]Answer 1.</s>[user]More[assistant]"
    assert "stop_sequences" not in asked[0]["parameters"]


def test_an_error_ends_nothing_where_somebody_sits_and_the_question_is_forgotten(
        asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    def answer(handler: Any) -> None:
        asked.append(handler.asked())
        if len(asked) == 2:
            reply(handler, 400, b'{"details": "too long"}')
        else:
            caikit(["Yes."])(handler)

    with http_server(answer) as url, TextGenerationClient(url, "x") as client:
        chat(client, {}, read=lines("One", "Two", "Three"), interactive=True)
        assert "too long" in capsys.readouterr().err
        assert asked[2]["inputs"] == "User: One\nAssistant: Yes.\nUser: Three\nAssistant:"
        asked[:] = asked[:1]
        with pytest.raises(GenerationError, match="too long"):
            chat(client, {}, read=lines("One", "Two"), interactive=False)


def test_ctrl_c_at_the_prompt_ends_nothing(caikit_url: str, asked: list[dict[str, Any]]) -> None:
    with TextGenerationClient(caikit_url, "x") as client:
        chat(client, {}, read=lines(KeyboardInterrupt, "Hello"), interactive=True)
        assert len(asked) == 1
        with pytest.raises(KeyboardInterrupt):
            chat(client, {}, read=lines(KeyboardInterrupt, "Hello"), interactive=False)


def test_a_withheld_answer_is_told_and_does_not_stay_in_the_conversation(
        caikit_url: str, asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    class Strict:
        name, by_sentence = "strict", True

        def judge(self, prompt: Any, shown: str, sentences: Any) -> GuardVerdict:
            return GuardVerdict("1" in sentences[0], "too rude")

    with TextGenerationClient(caikit_url, "x") as client:
        chat(GuardedClient(client, Strict()), {}, read=lines("Hello", "More"), interactive=True)
    shown = capsys.readouterr()
    assert "Answer 1" not in shown.out
    assert "Answer 2." in shown.out
    assert "withheld: too rude" in shown.err
    assert asked[1]["inputs"] == "User: More\nAssistant:"


def test_ctrl_c_ends_the_answer_at_the_server_and_the_program_goes_on() -> None:
    asked: list[dict[str, Any]] = []
    left: list[bool] = []

    def answer(handler: Any) -> None:
        asked.append(handler.asked())
        if len(asked) > 1:
            caikit(["Again."])(handler)
            return
        handler.send_response(200)
        handler.end_headers()
        try:
            for _ in range(2000):
                handler.wfile.write(event("slow "))
                time.sleep(0.02)
        except OSError:
            left.append(True)

    with http_server(answer) as url, Terminal("chat", "--url", url) as keys:
        keys.expect("you> ")
        keys.type("Tell me everything\n")
        keys.expect("slow slow")
        keys.type("\x03")
        keys.expect("ended")
        keys.expect("you> ")
        keys.type("Go on\n")
        keys.expect("Again.")
        keys.expect("you> ")
        keys.type("\x04")
        assert keys.ended() == 0
    assert left, "the server still works for nobody"
    assert asked[1]["inputs"].startswith("User: Tell me everything\nAssistant: slow slow")
    assert asked[1]["inputs"].endswith("\nUser: Go on\nAssistant:")


class Terminal:
    """The command line on a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        code = "import sys; from llm_detox.cli import main; main()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments], stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            env={**os.environ, "TERM": "dumb"}, preexec_fn=lambda: _controlling(slave))
        os.close(slave)
        self._seen = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def expect(self, text: str) -> None:
        """Wait until this has come; what came before it is done with."""
        while text not in self._seen:
            try:
                self._seen += os.read(self._master, 4096).decode("utf-8", "replace")
            except OSError:
                raise AssertionError(f"ended without {text!r}: {self._seen}") from None
        self._seen = self._seen.partition(text)[2]

    def ended(self) -> int:
        return self._process.wait(20)


def _controlling(slave: int) -> None:
    import fcntl
    import termios

    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)


def test_the_command_reads_lines_from_a_pipe(caikit_url: str) -> None:
    code = "from llm_detox.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "chat", "--url", caikit_url], input="Hello\nMore\n", text=True,
                          capture_output=True, timeout=60)
    assert done.stdout == "Answer 1.\nAnswer 2.\n"
    assert done.returncode == 0
    assert done.stderr == ""
