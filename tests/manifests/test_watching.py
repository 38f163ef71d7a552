"""What Prometheus and Grafana are told to ask for is what the servers show; and the objects are valid."""

from __future__ import annotations

import json
import re
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from llm_detox.detector.samples import LiveSamples
from llm_detox.guard.scorer_guard import ScorerGuard
from serving.guard.server import GuardServer
from tests.helpers.detecting import asked, serving
from tests.manifests import strict
from tests.manifests.kustomize import MANIFESTS, Object, build, load, pick, with_components
from tests.manifests.objects import needs_crds, selected

COMPONENT = MANIFESTS / "components/monitoring-answers"
RULES = load(COMPONENT / "prometheusrule.yaml")
DASHBOARD = json.loads((COMPONENT / "dashboard.json").read_text("utf-8"))
NAME = re.compile(r"\bllm_detox[:\w]*")


class Words:
    name = "words"

    def score(self, texts: Sequence[str]) -> list[float | None]:
        return [None if "?" in text else 0.9 if "damn" in text else 0.1 for text in texts]


@contextmanager
def guard_server(samples: LiveSamples | None = None) -> Iterator[str]:
    server = GuardServer(ScorerGuard(Words()), "127.0.0.1", 0, samples=samples)  # type: ignore[arg-type]
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.close()
        thread.join(30)


def scraped(url: str) -> dict[str, float]:
    """Sample -> its value."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}


def judge(url: str, text: str) -> None:
    body = json.dumps({"generated_text": text, "generated_tokens": 3, "finish_reason": "EOS_TOKEN"}).encode()
    urllib.request.urlopen(urllib.request.Request(f"{url}/guard", body), timeout=30).close()


def expressions() -> list[str]:
    rules = [rule["expr"] for group in RULES["spec"]["groups"] for rule in group["rules"]]
    return rules + [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> list[Object]:
    return with_components(tmp_path_factory.mktemp("mine"), "overlays/openshift-ai", ["monitoring-answers"])


def test_the_guard_counts_by_outcome_and_keeps_samples(tmp_path: Path) -> None:
    with guard_server(LiveSamples(tmp_path / "live.jsonl", 1.0, with_text=True)) as url:
        for text in ("A fine day.", "You damn fool.", "You damn fool.", "What?"):
            judge(url, text)
        figures = scraped(url)
    counted = {outcome: figures[f'llm_detox_guard_answers_total{{outcome="{outcome}",scorer="words"}}']
               for outcome in ("passed", "withheld", "unjudged")}
    assert counted == {"passed": 1, "withheld": 2, "unjudged": 1}
    assert figures['llm_detox_guard_toxicity_bucket{le="0.5",scorer="words"}'] == 1
    assert figures['llm_detox_guard_toxicity_count{scorer="words"}'] == 3
    assert figures['llm_detox_guard_seconds_count{scorer="words"}'] == 4
    assert figures['llm_detox_guard_requests_total{code="200"}'] >= 4
    assert not [name for name in figures if "damn" in name]
    kept = [json.loads(line)["generations"][0] for line in (tmp_path / "live.jsonl").read_text("utf-8").splitlines()]
    assert [(one["text"], one["toxicity"], one["withheld"]) for one in kept] == [
        ("A fine day.", 0.1, False), *[("You damn fool.", 0.9, True)] * 2, ("What?", None, True)]


def test_rules_and_dashboard_ask_for_metrics_and_labels_that_there_are() -> None:
    with guard_server() as guard, serving() as detector:
        judge(guard, "You damn fool.")
        asked(detector, {"contents": ["You damn fool!"]})
        shown = list(scraped(guard)) + list(scraped(detector))
    names = {sample.partition("{")[0] for sample in shown}
    labels = {label for sample in shown for label in re.findall(r'(\w+)="', sample)} | {"namespace", "source"}
    recorded = {rule["record"] for group in RULES["spec"]["groups"] for rule in group["rules"] if "record" in rule}
    assert recorded
    for expression in expressions():
        assert expression.count("(") == expression.count(")"), expression
        assert set(NAME.findall(expression)) <= names | recorded, expression
        by = [name for some in re.findall(r"by \(([^)]*)\)", expression) for name in some.split(", ")]
        asked_for = re.findall(r'(\w+)\s*!?=~?"', expression)
        assert {*by, *asked_for} <= labels, expression


def test_the_alert_compares_with_the_day_before_and_needs_some_texts() -> None:
    alerts = {rule["alert"]: rule for group in RULES["spec"]["groups"] for rule in group["rules"] if "alert" in rule}
    rising = alerts["LlmDetoxToxicShareRises"]["expr"]
    assert "[1d] offset 30m" in rising
    assert "judged_texts:30m >= 50" in rising
    assert all({"summary", "description"} <= set(rule["annotations"]) for rule in alerts.values())


@needs_crds
def test_all_objects_pass_strict_schemas(objects: list[Object]) -> None:
    for thing in objects:
        strict.check(thing)
    wrong = load(COMPONENT / "prometheusrule.yaml")
    wrong["spec"]["groups"][0]["rules"][0]["expression"] = "1"
    with pytest.raises(strict.Refused, match="expression"):
        strict.check(wrong)


def test_the_scrapers_reach_the_pods_of_the_samples(objects: list[Object]) -> None:
    guard = pick(build(MANIFESTS / "samples/guard"), "Deployment")["spec"]["template"]["metadata"]["labels"]
    detector = {"serving.kserve.io/inferenceservice": pick(
        build(MANIFESTS / "samples/detector"), "InferenceService")["metadata"]["name"]}
    services = {one["metadata"]["name"]: one for one in objects if one["kind"] == "Service"}
    monitor = next(one for one in objects if one["kind"] == "ServiceMonitor"
                   and one["metadata"]["name"] == "llm-detox-answers")["spec"]
    for name, pod in (("llm-detox-guard", guard), ("llm-detox-detector", detector)):
        service = services[f"{name}-scrape"]
        assert service["spec"]["selector"].items() <= pod.items()
        assert selected(monitor["selector"], service["metadata"]["labels"])
        assert {one["name"] for one in service["spec"]["ports"]} == {one["port"] for one in monitor["endpoints"]}
        policy = next(one for one in objects if one["metadata"]["name"] == f"{name}-metrics")["spec"]
        assert selected(policy["podSelector"], dict(pod))
        assert policy["ingress"][0]["ports"] == [{"port": 8080, "protocol": "TCP"}]
    board = next(one for one in objects if one["kind"] == "ConfigMap"
                 and one["metadata"]["name"] == "llm-detox-dashboard")
    assert board["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(board["data"]["dashboard.json"])["title"] == DASHBOARD["title"]
