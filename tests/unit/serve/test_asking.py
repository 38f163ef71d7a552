"""A deployed model is asked over the protocols that it speaks, with what its address wants to see."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_detox.errors import DetoxError
from llm_detox.processes import free_ports
from llm_detox.recipe import Recipe
from llm_detox.recipe.deploy import DeploySection
from llm_detox.scoring import load
from llm_detox.serve.deployment import KserveDeployment
from llm_detox.serve.kserve import probe
from llm_detox.serve.kserve.probe import require_answers
from llm_detox.serve.smoke import smoke
from tests.helpers.answering import caikit, http_server, openai, reply
from tests.helpers.sources import make_sources


class Halves:
    """Gives every text the same score."""

    def score(self, texts: list[str]) -> list[float]:
        return [0.5 for _ in texts]


def guarded(answer: Callable[[Any], None]) -> Callable[[Any], None]:
    """Asks for a token first, as kube-rbac-proxy does."""

    def check(handler: Any) -> None:
        if handler.headers.get("authorization") == "Bearer right":
            answer(handler)
        else:
            reply(handler, 401, json.dumps({"details": "Unauthorized"}).encode())

    return check


def deployment(folder: Path, urls: dict[str, str]) -> Path:
    folder.mkdir(parents=True)
    text = KserveDeployment("m", "http://unused", None, urls, "s3://b/m/1", "1", "p", "created", None).text()
    (folder / "deployment.json").write_text(text, "utf-8")
    return folder


def test_the_smoke_request_asks_vllm_over_its_own_api_with_the_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "load_scorer", lambda spec: Halves())
    monkeypatch.setenv("LLM_DETOX_TOKEN", "right")
    recipe = Recipe.model_validate(make_sources(tmp_path / "data"))
    with http_server(guarded(openai([" very", " kind"]))) as url:
        result = smoke(recipe, deployment=deployment(tmp_path / "deployed", {"openai": f"openai+{url}"}),
                       output=tmp_path / "smoke")
    assert result.text == " very kind"
    assert [(one.protocol, one.mode) for one in result.answers] == [("openai", "unary"), ("openai", "stream")]


@pytest.mark.parametrize(("answer", "scheme"), [(caikit([" fine"]), ""), (openai([" fine"]), "openai+")])
def test_a_probe_shows_its_token(answer: Callable[[Any], None], scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_DETOX_TOKEN", "right")
    with http_server(guarded(answer)) as url:
        require_answers({"any": f"{scheme}{url}"}, "m", DeploySection())


@pytest.mark.parametrize(("answer", "token", "words"), [
    (caikit([" fine"]), "wrong", "ready, but it does not answer"),
    (caikit([" "]), "right", "the model's answer is empty")])
def test_a_probe_that_gets_no_answer_says_why(answer: Callable[[Any], None], token: str, words: str,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_ANSWER_SECONDS", 0.0)
    monkeypatch.setenv("LLM_DETOX_TOKEN", token)
    with http_server(guarded(answer)) as url, pytest.raises(DetoxError, match=words):
        require_answers({"rest": url}, "m", DeploySection())


@pytest.mark.parametrize("silent", ["rest", "grpc"])
def test_a_probe_asks_each_protocol(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose gRPC port was dead passed, for REST alone was asked."""
    monkeypatch.setattr(probe, "_ANSWER_SECONDS", 0.0)
    [closed] = free_ports(1)
    with http_server(caikit([" fine"])) as url:
        urls = {"rest": url, "grpc": url, silent: f"http://127.0.0.1:{closed}"}
        with pytest.raises(DetoxError, match="ready, but it does not answer"):
            require_answers(urls, "m", DeploySection())
