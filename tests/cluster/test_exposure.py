"""`deploy.kserve.expose`: what we write, what stays of others, and which address is believed.

The label, the refusal to be ready without a Route and all objects save the Route are as KServe was recorded. The Route
and the status with it are not: odh-model-controller and a router were not there, their stand-in follows their source.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from llm_detox.errors import DetoxError, UsageError
from tests.cluster.conftest import NEW, OLD, QUICK, Object, Project, asked_versions, live, refuse, version_of
from tests.serving.running import wait_for
from tests.standins.cluster.openshift import Routes
from tests.standins.kserve.platform import AUTH, EXPOSED, VISIBILITY

OUTSIDE = {"metadata": {"labels": {VISIBILITY: EXPOSED}, "annotations": {AUTH: "true"}}}


@pytest.fixture
def routed(openshift: Project) -> Iterator[Project]:
    """OpenShift AI with a router."""
    with Routes(openshift.here.api, openshift.namespace):
        yield openshift


def route_of(project: Project) -> Object | None:
    return project.here.api.get("Route", project.namespace, "llm-detox")


def inside(project: Project, end: str = ":8443", scheme: str = "https") -> str:
    return f"{scheme}://llm-detox-predictor.{project.namespace}.svc.cluster.local{end}"


def test_a_model_is_exposed_with_a_token_and_asked_at_its_service(routed: Project) -> None:
    routed.deploy(OLD, auth="on", expose="on")
    route, service = route_of(routed), live(routed)
    assert route is not None
    assert service["metadata"]["labels"][VISIBILITY] == EXPOSED
    assert service["status"]["url"] == f"https://{route['spec']['host']}"
    assert route["spec"]["tls"]["termination"] == "reencrypt"
    assert routed.asked == [{"name": "llm-detox", "versions": {OLD}, "rest": inside(routed)}]


def test_exposure_and_its_route_stay_over_deployments_that_leave_it_to_others(routed: Project) -> None:
    routed.deploy(OLD)
    routed.here.change(OUTSIDE)
    before = wait_for(lambda: route_of(routed))
    routed.deploy(NEW)
    assert routed.deploy(NEW).rollout == "unchanged"
    after = route_of(routed)
    assert after is not None
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert live(routed)["metadata"]["labels"][VISIBILITY] == EXPOSED
    assert routed.asked[-1]["rest"] == inside(routed)


def test_a_canary_of_an_exposed_model_has_no_route(routed: Project) -> None:
    routed.deploy(OLD, auth="on", expose="on")
    names = set()

    def probe(*_: object) -> None:
        names.update(one["metadata"]["name"] for one in routed.here.api.list("Route", routed.namespace))

    assert routed.deploy(NEW, probe=probe, rollout="canary").rollout == "promoted"
    assert names == {"llm-detox"}


def test_exposure_ends_where_the_recipe_ends_it(routed: Project) -> None:
    routed.deploy(OLD, auth="on", expose="on")
    routed.deploy(OLD, auth="off", expose="off")
    service = live(routed)
    assert VISIBILITY not in service["metadata"]["labels"]
    wait_for(lambda: route_of(routed) is None)
    assert routed.asked[-1]["rest"] == inside(routed, "", "http")


def test_the_token_is_not_taken_off_a_model_that_a_route_leads_to(routed: Project) -> None:
    routed.deploy(OLD, auth="on", expose="on")
    with pytest.raises(UsageError, match="a Route leads to it"):
        routed.deploy(NEW, auth="off")
    service = live(routed)
    assert (service["metadata"]["annotations"][AUTH], version_of(service)) == ("true", OLD)


def test_a_version_that_fails_leaves_the_exposure_as_it_was(routed: Project) -> None:
    routed.deploy(OLD)
    with pytest.raises(DetoxError, match="serves again what it served before"):
        routed.deploy(NEW, auth="on", expose="on", probe=refuse)
    service = live(routed)
    assert VISIBILITY not in service["metadata"]["labels"]
    assert service["metadata"]["annotations"].get(AUTH) != "true"
    wait_for(lambda: route_of(routed) is None)


def test_without_a_router_the_wait_says_what_is_missing(openshift: Project) -> None:
    """KServe was recorded so: ready pods, and neither an address nor `Ready` without a Route."""
    with pytest.raises(DetoxError, match="its pods serve; KServe waits for its Route") as caught:
        openshift.deploy(OLD, auth="on", expose="on", patience=replace(QUICK, pending=1.0))
    assert "oc describe route" in str(caught.value.remedy)
    assert asked_versions(openshift) == []
