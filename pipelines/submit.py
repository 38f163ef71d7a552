"""Submitting a pipeline to a cluster's pipeline server, and waiting for it with progress."""

from __future__ import annotations

import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from llm_detox.errors import DetoxError, GateNotPassed, UsageError, clear_disk_errors, disk_error, without_logins
from llm_detox.progress import human_seconds, say
from llm_detox.recipe import Recipe
from llm_detox.recipe.files import resolve_recipe
from pipelines.placement import Placement

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TOKEN_VARIABLE = "LLM_DETOX_PIPELINE_TOKEN"  # noqa: S105  the name of a variable
_ENDED = {"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"}
_AWAY_SECONDS = 300.0


@dataclass(frozen=True)
class PipelineServer:
    """Where the pipeline server is and who asks. The token is never shown.

    Args:
        host: its URL: on OpenShift AI the route `ds-pipeline-dspa`.
        token_file: a file with the token; None takes $LLM_DETOX_PIPELINE_TOKEN, else the pod's own.
        ca_file: who signed the route's certificate; None trusts what the system trusts.
        namespace: for multi-user servers.
    """

    host: str
    token_file: Path | None = None
    ca_file: Path | None = None
    namespace: str | None = None

    def client(self) -> Any:
        """A `kfp.Client`.

        Raises:
            UsageError: the address or a file is wrong.
            DetoxError: the server cannot be reached, or refuses the token.
        """
        import kfp

        if urlsplit(self.host).scheme not in ("http", "https"):
            raise UsageError("not the URL of a pipeline server", place=self.host, remedy="--host https://...")
        if self.ca_file and not self.ca_file.is_file():
            raise UsageError("no such file", place=str(self.ca_file), remedy="--ca FILE.pem")
        token = self._token() or "none"  # given no token, kfp would ask Google for one
        self._greet(token)
        with _clear_errors(self.host), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return kfp.Client(host=self.host.rstrip("/"), existing_token=token, namespace=self.namespace,
                              ssl_ca_cert=str(self.ca_file) if self.ca_file else None)

    def _greet(self, token: str) -> None:
        """A wrong address, token or authority shows at once; kfp's client would try again for half a minute."""
        import requests

        try:
            answer = requests.get(f"{self.host.rstrip('/')}/apis/v2beta1/healthz", timeout=30,
                                  headers={"Authorization": f"Bearer {token}"},
                                  verify=str(self.ca_file) if self.ca_file else True)
        except requests.exceptions.SSLError:
            raise _untrusted(self.host) from None
        except requests.exceptions.RequestException as error:
            raise _away(self.host, error) from None
        if answer.status_code != 200:
            raise _refused(self.host, answer.status_code, answer.reason)

    def _token(self) -> str | None:
        if self.token_file:
            if not self.token_file.is_file():
                raise UsageError("no such file", place=str(self.token_file), remedy="(umask 077; oc whoami -t > FILE)")
            return self.token_file.read_text("utf-8").strip()
        own = _ACCOUNT / "token"
        return os.environ.get(_TOKEN_VARIABLE) or (own.read_text("utf-8").strip() if own.exists() else None)


@dataclass(frozen=True)
class Submission:
    """A run that nobody waits for: its id, where to look at it, and the seconds that submitting took."""

    run_id: str
    url: str
    state: str
    seconds: float


@dataclass(frozen=True)
class FinishedRun:
    """A run that has ended: its id, where to look at it, the state of each step by its name, and the seconds."""

    run_id: str
    url: str
    state: str
    steps: dict[str, str]
    seconds: float


@dataclass(frozen=True)
class StepNames:
    """What people call the nodes of a run.

    The server names its nodes after the tasks' keys in the compiled pipeline, such as `sft-2` and `condition-7`
    (`task_details[].display_name`, seen in 2.16); the display names stand in the pipeline alone.

    Attributes:
        steps: key -> display name, of tasks that run something, and of conditions.
        groups: keys of what only holds other tasks: the exit handler and loops.
    """

    steps: Mapping[str, str]
    groups: frozenset[str]

    @classmethod
    def read(cls, package: Path) -> StepNames:
        """Of a compiled pipeline."""
        spec = next(yaml.safe_load_all(package.read_text("utf-8")))
        steps: dict[str, str] = {}
        groups = set()
        for component in (spec["root"], *spec.get("components", {}).values()):
            for key, task in component.get("dag", {}).get("tasks", {}).items():
                inner = spec["components"][task["componentRef"]["name"]]
                if "dag" in inner and "condition" not in task.get("triggerPolicy", {}):
                    groups.add(key)
                else:
                    steps[key] = task["taskInfo"]["name"]
        return cls(steps, frozenset(groups))

    def shown(self, node: str) -> str | None:
        """The name of a node for people; None for one that they need not see: a driver, a loop, its iterations."""
        hidden = node in self.groups or node == "root" or node.startswith("iteration")
        return None if hidden or node.endswith(("-driver", "executor")) else self.steps.get(node, node)


def submit(
    recipe: Recipe, server: PipelineServer, *, experiment: str, placement: Placement, wait: bool = True,
    pipeline: str = "detox-and-serve", parameters: Sequence[str] = (), fresh: bool = False,
    timeout_seconds: float = 86400.0, poll_seconds: float = 10.0,
) -> Submission | FinishedRun:
    """Run a pipeline in a cluster.

    Args:
        recipe: what to run; it is deployed to the cluster, whatever its `deploy.target` says.
        server: the pipeline server.
        experiment: the experiment that the run is filed under; made where missing.
        placement: where the steps run.
        pipeline: "detox-and-serve", "evaluate-only", "train-judge" or "promote".
        parameters: `name=value` each, of the pipeline's other parameters, such as "shards=4"; a list has one for each
            of its parts.
        fresh: do every step anew, also those that an earlier run finished: its inputs may have changed in their place.
        wait: return when it has ended, showing the steps as they begin and end.
        timeout_seconds, poll_seconds: of the waiting.

    Raises:
        GateNotPassed: the run is done, the model did not pass.
        DetoxError: the server refuses, or a step failed; the message names it.
    """
    from pipelines.compile import compile_one

    started = time.monotonic()
    values = _parameters(recipe, pipeline, parameters)
    settings = resolve_recipe(values["recipe"], overrides=values.get("overrides", ()))
    placement = placement.connected(settings.cluster)
    if settings.training.job.nodes > 1:
        placement = placement.with_training_elsewhere()
    placement = placement.without_cache() if fresh else placement
    client = server.client()
    # kfp prints links; stdout is for the result.
    with _clear_disk(), tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        package = compile_one(pipeline, Path(folder), placement)
        names = StepNames.read(package)
        with _clear_errors(server.host):
            filed = client.create_experiment(experiment, namespace=server.namespace)
            run = client.run_pipeline(
                experiment_id=filed.experiment_id, job_name=f"{recipe.name} {time.strftime('%Y-%m-%d %H:%M')}",
                pipeline_package_path=str(package), params=values)
    url = without_logins(f"{server.host.rstrip('/')}/#/runs/details/{run.run_id}")
    say(f"submitted: {url}")
    if not wait:
        return Submission(run.run_id, url, "SUBMITTED", round(time.monotonic() - started, 1))
    state, steps = _follow(lambda: client.get_run(run.run_id), names, server.host, timeout_seconds, poll_seconds)
    _raise_unless_passed(state, steps, url)
    return FinishedRun(run.run_id, url, state, steps, round(time.monotonic() - started, 1))


def _parameters(recipe: Recipe, pipeline: str, given: Sequence[str]) -> dict[str, Any]:
    from kfp.pipeline_spec.pipeline_spec_pb2 import ParameterType

    from pipelines.compile import PIPELINES

    if pipeline not in PIPELINES:
        raise UsageError("there is no such pipeline", place=pipeline, remedy=f"one of {', '.join(PIPELINES)}")
    known = PIPELINES[pipeline].pipeline_spec.root.input_definitions.parameters
    deploy = recipe.deploy.model_copy(update={"target": "kserve"})
    values: dict[str, Any] = {"recipe": recipe.model_copy(update={"deploy": deploy}).model_dump_json()}
    for one in given:
        name, equal, text = one.partition("=")
        if name not in known or name == "recipe" or not equal:
            raise UsageError(f"{one!r} is not a parameter of {pipeline}", place="--parameter",
                             remedy=f"name=value, of {', '.join(other for other in known if other != 'recipe')}")
        if known[name].parameter_type == ParameterType.LIST:
            values.setdefault(name, []).append(text)
        else:
            values[name] = _value(name, text, known[name].parameter_type)
    if missing := [name for name, one in known.items() if not one.is_optional and name not in values]:
        raise UsageError(f"{pipeline} needs {', '.join(missing)}", place="--parameter",
                         remedy=f"--parameter {missing[0]}=...")
    return values


def _value(name: str, text: str, kind: int) -> Any:
    """The parameter as the pipeline declares it."""
    from kfp.pipeline_spec.pipeline_spec_pb2 import ParameterType

    try:
        return {ParameterType.NUMBER_INTEGER: int, ParameterType.NUMBER_DOUBLE: float}.get(kind, str)(text)
    except ValueError:
        raise UsageError(f"{text!r} is not a number", place=f"--parameter {name}", remedy=f"{name}=1") from None


def _follow(
    look: Callable[[], Any], names: StepNames, host: str, timeout: float, poll: float
) -> tuple[str, dict[str, str]]:
    """Show each step as its state changes, until the run has ended; a server that is away for a while is waited for."""
    started, seen_last = time.monotonic(), time.monotonic()
    states: dict[str, tuple[str, str]] = {}
    while True:
        try:
            with _clear_errors(host):
                run = look()
            seen_last = time.monotonic()
        except DetoxError:
            if time.monotonic() - seen_last > _AWAY_SECONDS:
                raise
            time.sleep(poll)
            continue
        _show(run, names, states, started)
        if run.state in _ENDED:
            return str(run.state), _by_name(states)
        if time.monotonic() - started > timeout:
            raise DetoxError(f"still {run.state} after {human_seconds(timeout)}", place=run.run_id,
                             remedy="it continues; look at it in the dashboard, or wait longer with --timeout")
        time.sleep(poll)


def _show(run: Any, names: StepNames, states: dict[str, tuple[str, str]], started: float) -> None:
    """Say what changed; `states` has name and state of each task by its id, for shards share a name."""
    for task in (run.run_details.task_details if run.run_details else None) or ():
        name, state = names.shown(task.display_name or task.task_id), task.state
        if name is None or state is None:
            continue
        if states.get(task.task_id) != (name, state):
            states[task.task_id] = (name, state)
            say(f"{name}: {state.lower()} ({human_seconds(time.monotonic() - started)})")


def _by_name(states: dict[str, tuple[str, str]]) -> dict[str, str]:
    """The state of each name; where tasks share one, a failed shard counts before the others."""
    return dict(sorted(states.values(), key=lambda one: one[1] == "FAILED"))


def _raise_unless_passed(state: str, steps: dict[str, str], url: str) -> None:
    failed = sorted(name for name, one in steps.items() if one == "FAILED")
    if state != "SUCCEEDED":
        raise DetoxError(f"the run ended as {state}" + (f"; failed: {', '.join(failed)}" if failed else ""), place=url,
                         remedy="the step `outcome` there says why; a run of the same recipe continues after the "
                                "steps that are done")
    if steps.get("gate") == "SKIPPED":
        raise GateNotPassed("the model did not pass the gate: nothing was published or deployed", place=url,
                            remedy="read the report there")


def _clear_disk() -> AbstractContextManager[None]:
    return clear_disk_errors("the folder for temporary files", "set TMPDIR to another folder")


@contextmanager
def _clear_errors(host: str) -> Iterator[None]:
    """The server's failures in words that help; those of this machine's disk are not the server's."""
    from kfp_server_api.exceptions import ApiException
    from urllib3.exceptions import HTTPError, MaxRetryError

    try:
        yield
    except ApiException as error:
        raise _refused(host, error.status, error.reason) from None
    except (MaxRetryError, HTTPError, OSError) as error:
        if disk_error(error, "", ""):
            raise
        raise (_untrusted(host) if "certificate" in str(error).lower() else _away(host, error)) from None


def _refused(host: str, status: int, reason: str) -> DetoxError:
    if status in (401, 403):
        return DetoxError(f"the pipeline server refuses the token ({status})", place=host,
                          remedy="write a new one to the file of --token-file: oc whoami -t; the account needs the "
                                 "project's edit role")
    return DetoxError(f"the pipeline server refuses: {status} {reason}", place=host,
                      remedy="check the address and the server's log")


def _untrusted(host: str) -> DetoxError:
    return DetoxError("the pipeline server's certificate is not trusted", place=host,
                      remedy="--ca FILE.pem: the authority that signed the route's certificate")


def _away(host: str, error: Exception) -> DetoxError:
    return DetoxError(f"the pipeline server does not answer ({type(error).__name__})", place=host,
                      remedy="check --host: oc get route ds-pipeline-dspa")
