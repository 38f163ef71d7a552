"""The InferenceGraph sample: valid, restricted, and with it no answer goes around the guard."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

from llm_detox.client import GenerationError, TextGenerationClient
from llm_detox.guard.build import ScorerGuard
from serving.guard.server import GuardServer
from tests.helpers.answering import caikit, http_server, openai, reply
from tests.manifests import strict
from tests.manifests.kustomize import MANIFESTS, Object, build, load, overlay, pick
from tests.manifests.objects import containers, needs_crds

GRAPH = "samples/guard"


@pytest.fixture(scope="module")
def objects() -> list[Object]:
    return build(MANIFESTS / GRAPH)


@needs_crds
def test_the_sample_passes_strict_schemas(objects: list[Object]) -> None:
    for thing in objects:
        strict.check(thing)
    with pytest.raises(strict.Refused, match="dependancy"):
        wrong = load(MANIFESTS / GRAPH / "inferencegraph.yaml")
        wrong["spec"]["nodes"]["root"]["steps"][0]["dependancy"] = "Hard"
        strict.check(wrong)


def test_the_guard_runs_restricted_from_an_image_of_the_settings(objects: list[Object]) -> None:
    (container,) = containers(pick(objects, "Deployment"))
    context = container["securityContext"]
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert {"readinessProbe", "livenessProbe", "startupProbe"} <= set(container)
    assert {"cpu", "memory"} <= set(container["resources"]["limits"])
    engine = next(one for one in load(MANIFESTS / "settings/kustomization.yaml")["images"] if one["name"] == "engine")
    assert container["image"] == f"{engine['newName']}:{engine['newTag']}"


def test_the_steps_lead_to_what_is_there_and_both_are_hard(objects: list[Object]) -> None:
    steps = pick(objects, "InferenceGraph")["spec"]["nodes"]["root"]["steps"]
    assert [step["dependency"] for step in steps] == ["Hard", "Hard"]
    assert [step.get("data") for step in steps] == [None, "$response"]
    model, guard = (urlsplit(step["serviceUrl"]) for step in steps)
    service = pick(objects, "Service")
    assert (guard.hostname, guard.port) == (service["metadata"]["name"], service["spec"]["ports"][0]["port"])
    selected = pick(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= selected.items()
    assert pick(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"].items() <= selected.items()
    (container,) = containers(pick(objects, "Deployment"))
    assert f"--port={container['ports'][0]['containerPort']}" in container["args"]
    served = pick(overlay("overlays/kserve/model"), "InferenceService")["metadata"]["name"]
    assert (model.hostname, model.port or 80) == (f"{served}-predictor", 80)  # the port that KServe's Service has


class Words:
    name = "words"

    def score(self, texts: Sequence[str]) -> list[float | None]:
        return [None if "?" in text else 0.9 if "damn" in text else 0.1 for text in texts]


@contextmanager
def guard_server(scorer: Any = None) -> Iterator[str]:
    server = GuardServer(ScorerGuard(scorer or Words()), "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.close()
        thread.join()


@contextmanager
def graph(model: Any, guard: str, objects: list[Object]) -> Iterator[str]:
    """The graph, played as KServe's router plays a Sequence; only the hosts differ from the manifest."""
    steps = pick(objects, "InferenceGraph")["spec"]["nodes"]["root"]["steps"]
    with http_server(model) as model_url:
        hosts = {"model": model_url, "guard": guard}

        def route(handler: Any) -> None:
            status, answer = 200, b""
            for step in steps:
                body = answer if step.get("data") == "$response" else handler.body
                status, answer = post(hosts[step["name"]] + urlsplit(step["serviceUrl"]).path, body)
                if step["dependency"] == "Hard" and not 200 <= status <= 299:
                    break
            reply(handler, status, answer)

        with http_server(route) as url:
            yield url


def post(url: str, body: bytes) -> tuple[int, bytes]:
    try:
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_the_client_asks_the_graph_as_it_asks_caikit(objects: list[Object]) -> None:
    with guard_server() as guard:
        with graph(caikit(["A fine", " day."]), guard, objects) as url, TextGenerationClient(url, "m") as client:
            assert client.generate("a").text == "A fine day."
        with graph(caikit(["A fine day. ", "You damn fool."]), guard, objects) as url, \
                TextGenerationClient(url, "m") as client:
            answer = client.generate("a")
            assert (answer.text, answer.finish_reason) == ("", "WITHHELD")
            assert answer.generated_tokens == 2


def test_an_answer_that_cannot_be_judged_goes_to_nobody(objects: list[Object]) -> None:
    class Broken(Words):
        def score(self, texts: Sequence[str]) -> list[float | None]:
            raise RuntimeError("no weights")

    with guard_server() as guard, graph(caikit(["Who?"]), guard, objects) as url, \
            TextGenerationClient(url, "m") as client:
        assert client.generate("a").finish_reason == "WITHHELD"
    with guard_server(Broken()) as guard, graph(caikit(["secret"]), guard, objects) as url, \
            TextGenerationClient(url, "m") as client, pytest.raises(GenerationError, match="no weights") as caught:
        client.generate("a")
    assert "secret" not in str(caught.value)
    with graph(caikit(["secret"]), "http://127.0.0.1:9", objects) as url, \
            TextGenerationClient(url, "m", retries=0) as client, pytest.raises(GenerationError):
        client.generate("a")


def test_the_models_own_error_comes_through(objects: list[Object]) -> None:
    def refuse(handler: Any) -> None:
        reply(handler, 404, b'{"details": "no such model", "code": 404}')

    with guard_server() as guard, graph(refuse, guard, objects) as url, TextGenerationClient(url, "m") as client, \
            pytest.raises(GenerationError, match="no such model") as caught:
        client.generate("a")
    assert caught.value.code == "NOT_FOUND"


@pytest.mark.parametrize("body", [
    b"", b"no json", b"[]", b"{}", b'{"generated_text": null}', b'{"generated_text": 3}', b'{"choices": []}',
    b'{"choices": [3]}', b'{"choices": [{"message": {"content": null}}]}', b'{"text": "damn"}', b"[" * 100_000])
def test_what_is_no_answer_is_refused(body: bytes) -> None:
    with guard_server() as guard:
        status, answer = post(f"{guard}/guard", body)
    assert status == 422
    assert "damn" not in json.loads(answer)["details"]


def test_answers_of_openai_servers_are_judged_choice_by_choice() -> None:
    choices = [{"text": "damn", "logprobs": {"tokens": ["damn"]}, "finish_reason": "stop", "stop_reason": "damn"},
               {"text": "fine"},
               {"message": {"role": "assistant", "content": "damn", "reasoning": "damn"}}]
    with guard_server() as guard:
        status, answer = post(f"{guard}/guard", json.dumps({"choices": choices, "usage": {"total_tokens": 3}}).encode())
    assert status == 200
    assert b"damn" not in answer
    first, second, third = json.loads(answer)["choices"]
    assert (first["text"], first["finish_reason"], first["guard"]["withheld"]) == ("", "content_filter", True)
    assert (second["text"], second["guard"]["withheld"]) == ("fine", False)
    assert third["message"] == {"role": "assistant", "content": ""}
    with guard_server() as guard, http_server(openai(["fine"])) as model:
        status, answer = post(f"{guard}/guard", post(f"{model}/v1/completions", b'{"prompt": "a"}')[1])
    assert json.loads(answer)["choices"][0]["text"] == "fine"


def test_nothing_that_was_withheld_is_left_in_the_answer() -> None:
    said = {"generated_text": "damn", "tokens": [{"text": "damn"}], "input_tokens": [{"text": "damn"}], "new": "damn",
            "generated_tokens": 1, "finish_reason": "EOS_TOKEN", "input_token_count": 1}
    with guard_server() as guard:
        _, answer = post(f"{guard}/guard", json.dumps(said).encode())
    assert b"damn" not in answer
    verdict = json.loads(answer)["guard"]
    assert verdict["name"] == "words"
    assert verdict["score"] == 0.9
    assert 0 < verdict["seconds"] < 5


def test_health_is_there_and_a_body_past_the_limit_is_not_read() -> None:
    with guard_server() as guard:
        with urllib.request.urlopen(f"{guard}/health", timeout=10) as answer:
            assert json.load(answer) == {"guard": "words"}
        request = urllib.request.Request(f"{guard}/guard", b"{}", {"Content-Length": str(2**30)})
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=10)
        assert caught.value.code == 413
