"""The client over a real connection, before the in-memory cluster: promises, and what it does when things fail."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from cotenant.cluster.kube import connect
from cotenant.cluster.memory import InMemoryCluster
from cotenant.cluster.objects import Kind, Ref
from cotenant.cluster.rest import RestCluster
from tests.contracts.api_server import write_kubeconfig
from tests.contracts.cluster import ClusterContract
from tests.contracts.cluster_faults import ClusterFaultsContract
from tests.contracts.fault_proxy import Proxy, proxying
from tests.contracts.twin_server import serving

pytestmark = pytest.mark.integration

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
