"""Which bounds of which Ray cluster differ from what was applied, and the patch for them."""

from __future__ import annotations

from typing import Any

import pytest

from cotenant.cluster.bounds import Bounds, Shift, bounds_of, operations, shifts, staying, wanted_by
from cotenant.cluster.json_patch import document, patched
from tests.contracts.cluster import ray_cluster, ray_service, worker_group
from tests.contracts.ray_statuses import ACTIVE, PENDING, applications, status

pytestmark = pytest.mark.unit

RUNNING = applications(writer="RUNNING")


def service(*groups: Any, active: Any = RUNNING, pending: Any = None, strategy: str = "") -> dict[str, Any]:
    made = ray_service("shop")
    made["metadata"]["generation"] = 1
    made["spec"]["rayClusterConfig"]["workerGroupSpecs"] = list(groups)
    made["status"] = status(1, active=active, pending=pending)
    if strategy:
        made["spec"]["upgradeStrategy"] = {"type": strategy}
    return made


def test_bounds_are_read_by_group_with_kuberays_defaults() -> None:
    bare = {"groupName": "bare"}
    assert bounds_of({"workerGroupSpecs": [worker_group("shared", 4, least=1), bare]}) == {
        "shared": Bounds(1, 4),
        "bare": Bounds(0, 2**31 - 1),
    }
    assert bounds_of({}) == {}


def test_only_groups_that_both_have_are_compared_and_only_their_bounds() -> None:
    live = ray_cluster("shop", worker_group("old", 1), worker_group("shared", 2, replicas=2))
    wanted = wanted_by(service(worker_group("shared", 4, least=1, replicas=7), worker_group("new", 9)))
    (found,) = shifts(live, wanted)
    assert found == Shift("shop-raycluster-a", "shared", Bounds(0, 2), Bounds(1, 4))
    assert str(found) == "RayCluster shop-raycluster-a: group shared min 0 -> 1, max 2 -> 4"
    assert found.as_it_is == "group shared has min 0, not 1, max 2, not 4"
    assert shifts(live, wanted_by(service(worker_group("shared", 2, replicas=9)))) == ()


def test_the_patch_names_the_group_it_means_and_only_what_differs() -> None:
    live = ray_cluster("shop", worker_group("front", 1), worker_group("shared", 2))
    found = shifts(live, wanted_by(service(worker_group("shared", 4), worker_group("front", 1))))
    patch = operations(live, found)
    assert document(patch) == [
        {"op": "test", "path": "/spec/workerGroupSpecs/1/groupName", "value": "shared"},
        {"op": "replace", "path": "/spec/workerGroupSpecs/1/maxReplicas", "value": 4},
    ]
    after = patched(live, patch)
    assert after is not None
    assert shifts(after, {"shared": Bounds(0, 4)}) == ()
    turned = ray_cluster("shop", worker_group("shared", 2), worker_group("front", 1))
    assert patched(turned, patch) is None


BEFORE = service(worker_group("shared", 2))


@pytest.mark.parametrize(
    ("before", "after", "stays"),
    [
        (BEFORE, service(worker_group("shared", 4)), ACTIVE),
        (BEFORE, service(worker_group("shared", 4, replicas=3, least=1)), ACTIVE),
        (BEFORE, service(worker_group("shared", 4, image="engines:2")), ""),
        (BEFORE, service(worker_group("shared", 4), worker_group("more", 1)), ""),
        (BEFORE, service(worker_group("shared", 4, image="engines:2"), strategy="None"), ACTIVE),
        (BEFORE, service(worker_group("shared", 4), pending=RUNNING), PENDING),
        (BEFORE, service(worker_group("shared", 4), active=None, pending=RUNNING), PENDING),
        (BEFORE, service(worker_group("shared", 4), active=None), ""),
        (BEFORE, {**BEFORE, "status": {}}, ""),
    ],
    ids=[
        "only bounds",
        "replicas too",
        "another image",
        "another group",
        "no upgrades",
        "an upgrade is under way",
        "the first one comes up",
        "none yet",
        "no status yet",
    ],
)
def test_the_ray_cluster_that_stays_is_the_one_kuberay_compares_with(before: Any, after: Any, stays: str) -> None:
    assert staying(before, after) == stays
