"""Which cluster, and what is said where there is none. Nothing is sent."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from cotenant.cluster.kube import connect
from cotenant.errors import NotConnected

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _no_cluster_of_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def kubeconfig(tmp_path: Path, user: dict[str, Any] | None = None, current: str = "dev") -> Path:
    clusters = [{"name": name, "cluster": {"server": f"https://{name}.example:6443"}} for name in ("dev", "prod")]
    contexts = [{"name": name, "context": {"cluster": name, "user": "me"}} for name in ("dev", "prod")]
    users = [{"name": "me", "user": {"token": "t"} if user is None else user}]
    file = tmp_path / "config"
    told = {"apiVersion": "v1", "kind": "Config", "clusters": clusters, "contexts": contexts, "users": users}
    file.write_text(yaml.safe_dump({**told, "current-context": current}))
    return file


def test_the_current_context_is_taken_unless_one_is_named(tmp_path: Path) -> None:
    file = str(kubeconfig(tmp_path))
    assert str(connect(kubeconfig=file).where) == "dev (https://dev.example:6443)"
    assert connect("prod", kubeconfig=file).where.server == "https://prod.example:6443"
    assert connect("prod", kubeconfig=file).where.user == "me"


def test_kubeconfig_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", os.pathsep.join([str(tmp_path / "none"), str(kubeconfig(tmp_path))]))
    assert connect().where.context == "dev"


def test_a_context_that_is_not_there_lists_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(NotConnected, match=r"no context staging in .*there are: dev, prod; name one with --context"):
        connect("staging", kubeconfig=str(kubeconfig(tmp_path)))


def test_without_a_current_context_one_must_be_named(tmp_path: Path) -> None:
    with pytest.raises(NotConnected, match="dev, prod"):
        connect(kubeconfig=str(kubeconfig(tmp_path, current="")))


def test_without_a_kubeconfig_it_is_said_how_to_make_one() -> None:
    with pytest.raises(NotConnected, match="gcloud container clusters get-credentials"):
        connect()


@pytest.mark.parametrize("text", ["", "- a\n", "{", "apiVersion: v1\nkind: Config\n"])
def test_a_kubeconfig_that_cannot_be_read_is_said(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config"
    file.write_text(text)
    with pytest.raises(NotConnected, match="config"):
        connect(kubeconfig=str(file))


def test_a_login_helper_that_is_missing_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    helper = {"exec": {"apiVersion": "client.authentication.k8s.io/v1beta1", "command": "no-such-helper"}}
    with pytest.raises(NotConnected, match="logs in by no-such-helper, which gave no login"):
        connect(kubeconfig=str(kubeconfig(tmp_path, helper)))


def test_a_pod_without_its_token_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    with pytest.raises(NotConnected, match="give it a service account"):
        connect()
