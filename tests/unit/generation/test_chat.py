"""Chat models: one on this machine through its template, or a served one; an answer, or the reason for none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest

from llm_detox.client import client as client_module
from llm_detox.errors import DetoxError
from llm_detox.generation.chat import open_chat, render_chat
from llm_detox.generation.models import load_tokenizer
from llm_detox.generation.sampling import sample_continuations
from llm_detox.recipe.evaluation import SamplingSection
from llm_detox.recipe.judge import ChatModelSection
from tests.helpers.tiny import save_tiny_chat_llama

QUESTIONS = [[{"role": "user", "content": f"what a fine day {number}"}] for number in range(5)]
KEYS = [str(number) for number in range(5)]


class ChatServer(BaseHTTPRequestHandler):
    """An OpenAI-compatible server that says what it was asked, and fails where it is told to."""

    bodies: ClassVar[list[dict[str, Any]]]
    tokens: ClassVar[list[str | None]]
    failure: ClassVar[int] = 503
    elsewhere: ClassVar[str] = ""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).bodies.append(body)
        type(self).tokens.append(self.headers["Authorization"])
        asked = body["messages"][-1]["content"]
        self.send_response(type(self).failure if asked.endswith("3") else 200)
        if type(self).elsewhere:
            self.send_header("Location", type(self).elsewhere)
        self.end_headers()
        content = None if asked.endswith("4") else f" {self.path} {asked} "
        self.wfile.write(json.dumps({"choices": [{"message": {"content": content}}]}).encode())

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def server() -> Iterator[str]:
    ChatServer.bodies, ChatServer.tokens = [], []
    http = ThreadingHTTPServer(("127.0.0.1", 0), ChatServer)
    Thread(target=http.serve_forever, daemon=True).start()
    yield f"openai+http://127.0.0.1:{http.server_port}/org/model"
    http.shutdown()


@pytest.fixture(scope="module")
def chat_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_chat_llama(tmp_path_factory.mktemp("chat") / "llama")


def answers(how: ChatModelSection, questions: list[Any] = QUESTIONS) -> dict[int, tuple[str | None, str | None]]:
    chat = open_chat(how, "none")
    return {answer.index: (answer.text, answer.reason)
            for answer in chat.answers(questions, seed=1, keys=[str(n) for n in range(len(questions))])}


def test_a_served_chat_model_gets_messages_and_a_failure_is_a_missing_answer(
        server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_DETOX_TOKEN", "secret")
    found = answers(ChatModelSection(model=server, system="Be kind.", max_new_tokens=7))
    assert found[2] == ("/v1/chat/completions what a fine day 2", None)
    assert found[3] == (None, "the server gave no answer")
    assert found[4] == ("", None)
    body = ChatServer.bodies[0]
    assert body["messages"][0] == {"role": "system", "content": "Be kind."}
    assert (body["model"], body["max_tokens"]) == ("org/model", 7)
    assert body["top_p"] < 0.001
    assert set(ChatServer.tokens) == {"Bearer secret"}


@pytest.mark.parametrize(("status", "requests"), [(400, 1), (429, 3), (503, 3)])
def test_a_request_that_the_server_refuses_is_not_sent_again(
        server: str, monkeypatch: pytest.MonkeyPatch, status: int, requests: int) -> None:
    monkeypatch.setattr(client_module, "_FIRST_PAUSE", 0.0)
    monkeypatch.setattr(ChatServer, "failure", status)
    found = answers(ChatModelSection(model=server), [[{"role": "user", "content": "3"}]])
    assert found == {0: (None, "the server gave no answer")}
    assert len(ChatServer.bodies) == requests


def test_another_host_to_which_the_server_redirects_is_not_asked(
        server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str | None] = []

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told.append(self.headers["Authorization"])
            self.send_response(404)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *_: Any) -> None: ...

    other = ThreadingHTTPServer(("127.0.0.1", 0), Other)
    Thread(target=other.serve_forever, daemon=True).start()
    monkeypatch.setenv("LLM_DETOX_TOKEN", "secret")
    monkeypatch.setattr(ChatServer, "elsewhere", f"http://127.0.0.1:{other.server_port}/")
    for status in (302, 307):
        monkeypatch.setattr(ChatServer, "failure", status)
        answers(ChatModelSection(model=server), [[{"role": "user", "content": "3"}]])
    other.shutdown()
    assert ChatServer.bodies
    assert told == []


def test_a_local_model_answers_through_its_template(chat_llama: Path) -> None:
    found = answers(ChatModelSection(model=str(chat_llama), temperature=1.0, top_p=0.9, max_new_tokens=8))
    from llm_detox.generation.models import load_model

    direct = sample_continuations(
        load_model(chat_llama), load_tokenizer(chat_llama), [f"[user]{chat[0]['content']}[assistant]"
                                                             for chat in QUESTIONS],
        k=1, sampling=SamplingSection(top_p=0.9, max_new_tokens=8), seed=1, keys=KEYS)
    assert [found[n][0] for n in range(5)] == [texts[0].strip() for texts in direct]


def test_without_a_temperature_the_most_likely_tokens_are_taken_whatever_the_seed(chat_llama: Path) -> None:
    chat = open_chat(ChatModelSection(model=str(chat_llama), max_new_tokens=8), "none")
    one, two = ([answer.text for answer in chat.answers(QUESTIONS[:2], seed=seed, keys=KEYS[:2])] for seed in (1, 2))
    assert one == two


def test_a_conversation_that_does_not_fit_is_not_cut_but_unanswered(chat_llama: Path) -> None:
    questions = [QUESTIONS[0], [{"role": "user", "content": "the quick brown fox " * 1500}], QUESTIONS[1]]
    found = answers(ChatModelSection(model=str(chat_llama), max_new_tokens=8), questions)
    assert found[1] == (None, "the conversation is too long for the model")
    assert found[0][0] is not None
    assert found[2][0] is not None


def test_a_template_without_a_system_prompt_gets_it_in_the_first_message(chat_llama: Path) -> None:
    tokenizer = load_tokenizer(chat_llama)
    messages = [{"role": "system", "content": "Be kind."}, *QUESTIONS[0]]
    assert render_chat(tokenizer, messages) == "[system]Be kind.[user]what a fine day 0[assistant]"
    tokenizer.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" \
                              "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    assert render_chat(tokenizer, messages) == "[user]Be kind.\n\nwhat a fine day 0"
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(DetoxError, match="refuses a conversation"):
        render_chat(tokenizer, messages)


def test_without_a_template_the_turns_are_written_out_and_the_answer_ends_with_its_own() -> None:
    assert render_chat(None, [*QUESTIONS[0], {"role": "assistant", "content": "yes"}, *QUESTIONS[1]]) == (
        "User: what a fine day 0\nAssistant: yes\nUser: what a fine day 1\nAssistant:")


def test_the_first_token_is_not_put_twice(chat_llama: Path) -> None:
    tokenizer = load_tokenizer(chat_llama)
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    assert render_chat(tokenizer, QUESTIONS[0]) == "<s>what a fine day 0"  # this tokenizer puts none itself
    from tokenizers.processors import TemplateProcessing

    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    assert render_chat(tokenizer, QUESTIONS[0]) == "what a fine day 0"
