"""The stand-in for Kubeflow Pipelines names its nodes as the real compiler does, and ends runs as the real one."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.standins.argo import Scenario, nodes_of, templates_of
from tests.standins.kfp_api import PipelineServerStandIn
from tests.standins.recordings import ROOT, differences, documents, documents_of, needs_recordings

Object = dict[str, Any]
TOKEN = "right"
COMPILED = Path(__file__).resolve().parents[2] / "pipelines" / "compiled"
RECORDED_PIPELINE = Path(__file__).parent / "recorded_pipeline.yaml"  # it has changed since
RECORDED = sorted(path.name.partition(".")[0] for path in ROOT.glob("kfp/*.dags.yaml"))
# Tasks that had another name when the compiler was recorded.
RENAMED = {"resolve-recipe": "settle"}


def spec_of(pipeline: str, *, as_recorded: bool = False) -> Object:
    if as_recorded and pipeline == "detox-and-serve":
        return documents_of(RECORDED_PIPELINE.read_text("utf-8"))[0]
    text = (COMPILED / f"{pipeline}.yaml").read_text("utf-8")
    for now, then in RENAMED.items() if as_recorded else ():
        text = text.replace(now, then)
    return documents_of(text)[0]


@needs_recordings
@pytest.mark.parametrize("pipeline", RECORDED)
def test_the_templates_have_the_names_dependencies_and_conditions_of_the_real_compiler(pipeline: str) -> None:
    [recorded] = documents(ROOT / "kfp" / f"{pipeline}.dags.yaml")
    assert differences(recorded, templates_of(spec_of(pipeline, as_recorded=True))) == []


def states(scenario: Scenario, pipeline: str = "detox-and-serve") -> tuple[str, dict[str, set[str]]]:
    state, nodes = nodes_of(spec_of(pipeline), scenario)
    return state, {name: {one.state for one in nodes if one.display_name == name}
                   for name in (node.display_name for node in nodes)}


def test_a_run_that_passes_shows_task_keys_and_no_display_names() -> None:
    state, nodes = states(Scenario())
    assert state == "SUCCEEDED"
    assert {"condition-8", "sft-2", "measure-4", "for-loop-4", "sft-2-driver", "outcome", "smoke"} <= set(nodes)
    assert not {"gate", "sft-raw", "evaluate-dpo", "steps"} & set(nodes)
    assert set().union(*nodes.values()) == {"SUCCEEDED"}


def test_a_refused_condition_is_skipped_behind_its_driver_and_the_run_succeeds() -> None:
    state, nodes = states(Scenario(refused=frozenset({"condition-8"})))
    assert (state, nodes["condition-8-driver"], nodes["condition-8"]) == ("SUCCEEDED", {"SUCCEEDED"}, {"SKIPPED"})
    assert "deploy" not in nodes
    assert nodes["outcome"] == {"SUCCEEDED"}


def test_a_failed_step_fails_what_is_around_it_and_the_exit_handler_still_runs() -> None:
    state, nodes = states(Scenario(failed=frozenset({"dpo"})))
    assert state == "FAILED"
    failed = {name for name, seen in nodes.items() if seen == {"FAILED"}}
    assert failed == {"root", "exit-handler-1", "dpo"}
    assert "report" not in nodes
    assert nodes["outcome"] == {"SUCCEEDED"}


def test_a_loop_shows_its_step_once_for_each_item() -> None:
    _, nodes = nodes_of(spec_of("evaluate-only"), Scenario(items=3))
    assert [one.display_name for one in nodes].count("sample") == 3
    assert len({one.task_id for one in nodes}) == len(nodes)


def ask(server: PipelineServerStandIn, path: str, body: Object | None = None, token: str = TOKEN) -> Object:
    request = urllib.request.Request(f"{server.url}/apis/v2beta1/{path}", headers={"Authorization": f"Bearer {token}"},
                                     data=json.dumps(body).encode() if body else None)
    with urllib.request.urlopen(request, timeout=5) as answer:
        result: Object = json.load(answer)
    return result


def test_a_submitted_run_shows_more_of_its_nodes_at_each_look_until_it_has_ended() -> None:
    with PipelineServerStandIn(TOKEN, Scenario(failed=frozenset({"measure"})), looks=2) as server:
        run = ask(server, "runs", {"pipeline_spec": {"pipeline_spec": spec_of("evaluate-only")}})["run_id"]
        looks = [ask(server, f"runs/{run}") for _ in range(4)]
    assert [one["state"] for one in looks] == ["RUNNING", "RUNNING", "FAILED", "FAILED"]
    counts = [len(one["run_details"]["task_details"]) for one in looks]
    assert counts[0] < counts[1] < counts[2] == counts[3]
    assert "RUNNING" in {one["state"] for one in looks[0]["run_details"]["task_details"]}


def test_a_wrong_token_is_refused() -> None:
    with PipelineServerStandIn(TOKEN) as server, pytest.raises(urllib.error.HTTPError, match="401"):
        ask(server, "healthz", token="wrong")
