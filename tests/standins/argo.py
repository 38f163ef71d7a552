"""A stand-in for what Kubeflow Pipelines 2.16 makes of a compiled pipeline: Argo's templates, and the nodes of a run.

The names are the spec's task keys, never the display names. `templates_of` is measured against recordings of the real
compiler; the states follow from what the recordings' README says of a refused condition and of failures.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Object = dict[str, Any]
Steps = list[dict[str, str]]
_CACHED = "{{inputs.parameters.cached-decision}} != true"
# What an exit handler is told of the tasks before it (`dsl.PipelineTaskFinalStatus.state`): never SUCCEEDED.
STATES_FOR_EXIT_HANDLER = {"SUCCEEDED": ("COMPLETE", "RUNNING"), "FAILED": ("FAILED",)}


@dataclass(frozen=True)
class Node:
    """A node of the workflow, as `run_details.task_details` shows it."""

    task_id: str
    display_name: str
    state: str


@dataclass(frozen=True)
class Scenario:
    """How a run goes: task keys that fail, condition keys that are refused, and how many items each loop has."""

    failed: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()
    items: int = 1


def templates_of(spec: Object) -> dict[str, Steps]:
    """The DAG templates of the workflow: names, dependencies and conditions."""
    templates: dict[str, Steps] = {"entrypoint": _pair("root")}
    dags = {"root": spec["root"]["dag"]["tasks"],
            **{name: one["dag"]["tasks"] for name, one in spec["components"].items() if "dag" in one}}
    for name, tasks in dags.items():
        templates[name] = [step for key in sorted(tasks) if not _is_exit_hook(tasks[key])
                           for step in _steps_of(key, tasks[key])]
        for key, task in tasks.items():
            if _is_exit_hook(task):
                templates[f"exit-hook-{name}-{key}"] = _pair(key)
            elif _is_loop(task):
                component = task["componentRef"]["name"]
                templates[f"{component}-{key}-iterator"] = _pair("iteration", "iteration-iterations")
                templates[f"{component}-iteration"] = _pair("iteration-item")
            elif task["componentRef"]["name"] not in dags:
                prefix = "retry-" if "retryPolicy" in task else ""
                templates[f"{prefix}system-container-executor"] = [{"name": "executor", "when": _CACHED}]
    return templates


def nodes_of(spec: Object, scenario: Scenario) -> tuple[str, list[Node]]:
    """The state of a run that has ended, and its nodes in the order in which they came.

    A step that never became due has no node here: what the API shows of it was not recorded.
    """
    run = _Run(spec, scenario, templates_of(spec))
    done = run.walk("entrypoint", "run", {"root": "root"})
    for name in run.templates:
        if name.startswith("exit-hook-root-"):
            key = name.removeprefix("exit-hook-root-")
            done &= run.walk(name, "exit", {key: spec["root"]["dag"]["tasks"][key]["componentRef"]["name"]})
    return "SUCCEEDED" if done else "FAILED", run.nodes


@dataclass
class _Run:
    spec: Object
    scenario: Scenario
    templates: dict[str, Steps]
    nodes: list[Node] = field(default_factory=list)

    def walk(self, template: str, place: str, components: dict[str, str]) -> bool:
        """Run a template's steps as they become due; whether none of them failed."""
        waiting, succeeded, whole = list(self.templates[template]), set[str](), True
        while due := [one for one in waiting if _dependencies(one) <= succeeded]:
            step = due[0]
            waiting.remove(step)
            state = self._step(step["name"], f"{place}.{step['name']}", components)
            whole &= state != "FAILED"
            succeeded |= {step["name"]} if state != "FAILED" else set()
        return whole

    def _step(self, name: str, place: str, components: dict[str, str]) -> str:
        index = len(self.nodes)
        state = self._inner(name, place, components)
        self.nodes.insert(index, Node(place, name, state))
        return state

    def _inner(self, name: str, place: str, components: dict[str, str]) -> str:
        """Run what the step holds: a pod, a DAG, or a loop's four templates."""
        if name.endswith("-driver"):
            return "SUCCEEDED"
        if name in self.scenario.refused:
            return "SKIPPED"
        component = components.get(name, "")
        if name == "iteration-iterations":
            results = [self.walk(f"{component}-iteration", f"{place}.{item}", {"iteration-item": component})
                       for item in range(self.scenario.items)]
            return "SUCCEEDED" if all(results) else "FAILED"
        if f"{component}-{name}-iterator" in self.templates:
            inside = self.walk(f"{component}-{name}-iterator", place, {"iteration-iterations": component})
        elif component in self.templates:
            dag = self.spec["root" if component == "root" else "components"]
            tasks = (dag if component == "root" else dag[component])["dag"]["tasks"]
            inside = self.walk(component, place, {key: one["componentRef"]["name"] for key, one in tasks.items()})
        else:
            inside = name not in self.scenario.failed
            self.nodes.append(Node(f"{place}.executor", "executor", "SUCCEEDED" if inside else "FAILED"))
        return "SUCCEEDED" if inside else "FAILED"


def _steps_of(key: str, task: Object) -> Steps:
    needs = " && ".join(f"{one}.Succeeded" for one in sorted(task.get("dependentTasks", ())))
    depends = {"depends": needs} if needs else {}
    if _is_loop(task):
        return [{"name": key, **depends}]
    driver, step = _pair(key)
    if "condition" in task.get("triggerPolicy", {}):
        step["when"] = f"{{{{tasks.{key}-driver.outputs.parameters.condition}}}} != false"
    return [{**driver, **depends}, step]


def _pair(key: str, name: str | None = None) -> Steps:
    return [{"name": f"{key}-driver"}, {"name": name or key, "depends": f"{key}-driver.Succeeded"}]


def _is_loop(task: Object) -> bool:
    return "parameterIterator" in task or "artifactIterator" in task


def _is_exit_hook(task: Object) -> bool:
    return task.get("triggerPolicy", {}).get("strategy") == "ALL_UPSTREAM_TASKS_COMPLETED"


def _dependencies(step: dict[str, str]) -> set[str]:
    return {one.removesuffix(".Succeeded") for one in step.get("depends", "").split(" && ") if one}
