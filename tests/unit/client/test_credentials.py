"""What a client shows and trusts by itself: the account's token goes to the cluster's own services and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_detox.client import credentials
from llm_detox.client.credentials import Credentials, credentials_for

INSIDE = "https://llm-detox-predictor.project.svc.cluster.local:8443"


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a pod's account has."""
    monkeypatch.delenv("LLM_DETOX_TOKEN", raising=False)
    monkeypatch.delenv("LLM_DETOX_CA", raising=False)
    monkeypatch.setattr(credentials, "ACCOUNT", tmp_path)
    (tmp_path / "token").write_text("of-the-account\n", "utf-8")
    (tmp_path / "service-ca.crt").write_text("PEM", "utf-8")
    return tmp_path


@pytest.mark.parametrize("url", [INSIDE, f"openai+{INSIDE}", "grpcs://model.project.svc:8085",
                                 "https://model.project.svc"])
def test_services_of_the_cluster_get_the_accounts_token_over_tls(pod: Path, url: str) -> None:
    assert credentials_for(url) == Credentials("of-the-account", pod / "service-ca.crt")


@pytest.mark.parametrize("url", [
    INSIDE.replace("https", "http"), "https://example.com", "https://svc.example.com", "https://evil-svc",
    "https://model.svc.example.com", "grpc://model.project.svc:8085", "https://127.0.0.1:8080",
    "https://model.project.svc.cluster.local.example.com"])
def test_nobody_else_does(pod: Path, url: str) -> None:
    assert credentials_for(url) == Credentials(None, None)


def test_what_somebody_says_counts_before_what_the_pod_has(pod: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_DETOX_TOKEN", "given")
    monkeypatch.setenv("LLM_DETOX_CA", "/a/ca.crt")
    assert credentials_for(INSIDE) == Credentials("given", Path("/a/ca.crt"))
    assert credentials_for("http://localhost:8080") == Credentials("given", Path("/a/ca.crt"))
    assert credentials_for(INSIDE, ca_file=Path("/b")).ca_file == Path("/b")


def test_a_token_that_kubernetes_renews_is_read_anew(pod: Path) -> None:
    credentials_for(INSIDE)
    (pod / "token").write_text("renewed", "utf-8")
    assert credentials_for(INSIDE).token == "renewed"


def test_outside_of_a_pod_there_is_nothing_to_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLM_DETOX_TOKEN", raising=False)
    monkeypatch.setattr(credentials, "ACCOUNT", tmp_path / "absent")
    assert credentials_for(INSIDE) == Credentials(None, None)


def test_a_token_is_not_shown() -> None:
    assert "secret" not in repr(Credentials("secret", None))
