"""The in-memory cluster keeps the promises of a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from cotenant.cluster.memory import InMemoryCluster
from cotenant.cluster.objects import Kind, Ref
from tests.contracts.cluster import ClusterContract

pytestmark = pytest.mark.unit


class _World:
    def __init__(self, cluster: InMemoryCluster) -> None:
        self._cluster = cluster

    def patch(self, ref: Ref, changes: Mapping[str, Any], manager: str) -> None:
        self._cluster.patch(ref, changes, manager=manager)

    def set_status(self, ref: Ref, status: Mapping[str, Any]) -> None:
        self._cluster.set_status(ref, status)

    def too_old(self) -> str:
        self._cluster.compact()
        return "1"


class TestInMemoryCluster(ClusterContract):
    @pytest.fixture
    def cluster(self) -> InMemoryCluster:
        return InMemoryCluster(lacks=(Kind("nobody.example/v1", "Thing"), Kind("v1", "Thing")))

    @pytest.fixture
    def world(self, cluster: InMemoryCluster) -> _World:
        return _World(cluster)
