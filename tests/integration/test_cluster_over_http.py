"""The client over a real connection, before the in-memory cluster: promises, and what it does when things fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from cotenant.cluster.kube import connect
from cotenant.cluster.memory import InMemoryCluster
from cotenant.cluster.objects import RAY_SERVICE, Kind, Ref
from cotenant.cluster.rest import RestCluster
from tests.contracts.api_server import write_kubeconfig
from tests.contracts.cluster import ClusterContract
from tests.contracts.cluster_faults import ClusterFaultsContract
from tests.contracts.fault_proxy import Proxy, proxying
from tests.contracts.twin_server import serving

pytestmark = pytest.mark.integration
#: `scripts/test` runs it beside another.
WAITS_MORE_THAN_IT_COMPUTES = True

MISSING = (Kind("nobody.example/v1", "Thing"), Kind("v1", "Thing"))


class _World:
    def __init__(self, twin: InMemoryCluster) -> None:
        self._twin = twin

    def patch(self, ref: Ref, changes: Mapping[str, Any], manager: str) -> None:
        self._twin.patch(ref, changes, manager=manager)

    def set_status(self, ref: Ref, status: Mapping[str, Any]) -> None:
        self._twin.set_status(ref, status)

    def too_old(self) -> str:
        self._twin.compact()
        return "1"


@pytest.fixture
def twin() -> InMemoryCluster:
    return InMemoryCluster(lacks=MISSING)


@pytest.fixture
def world(twin: InMemoryCluster) -> _World:
    return _World(twin)


@pytest.fixture
def server(twin: InMemoryCluster) -> Iterator[str]:
    with serving(twin) as url:
        yield url


class TestPromises(ClusterContract):
    @pytest.fixture
    def cluster(self, server: str, tmp_path: Path) -> RestCluster:
        file = tmp_path / "config"
        write_kubeconfig(file, {"test": {"server": server}}, {"tester": {"token": "any"}})
        return connect(kubeconfig=str(file))


class TestFaults(ClusterFaultsContract):
    @pytest.fixture
    def proxy(self, server: str) -> Iterator[Proxy]:
        with proxying(server) as proxy:
            yield proxy


FILE = """
name: shop
workloads:
  mockups: {mockup: {templates: [mug]}, gpu: {vram_gib: 1.5}}
jobs: {store: "gs://bucket/results"}
gateway: {host: 0.0.0.0}
environments:
  prod:
    pools:
      front: {machine: e2-standard-8, nodes: {min: 1, max: 2}}
      shared: {accelerator: nvidia-l4, machine: g2-standard-8, nodes: {min: 0, max: 2}}
    gke: {project: acme-shop, region: us-central1}
"""


def test_ctrl_c_while_it_waits_leaves_everything_applied(server: str, twin: InMemoryCluster, tmp_path: Path) -> None:
    """The command as it is run, with its own process, kubeconfig and signal."""
    (tmp_path / "platform.yaml").write_text(FILE)
    write_kubeconfig(tmp_path / "config", {"test": {"server": server}}, {"tester": {"token": "any"}})
    words = ["deploy", "-f", str(tmp_path / "platform.yaml"), "-e", "prod", "--yes"]
    command = subprocess.Popen(
        [sys.executable, "-c", "from cotenant.cli import main; main()", *words],
        env={**os.environ, "KUBECONFIG": str(tmp_path / "config")},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert command.stderr is not None
    told = []
    for line in command.stderr:
        told.append(line)
        if "has not taken up the change yet" in line:
            command.send_signal(signal.SIGINT)
            break
    told += command.stderr.readlines()
    assert command.wait(30) == 130, "".join(told)
    assert "everything is applied and comes up by itself" in "".join(told)
    assert len(twin.list(RAY_SERVICE, "shop-prod").items) == 1
