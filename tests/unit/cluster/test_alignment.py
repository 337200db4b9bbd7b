"""Bounds taken to the running Ray cluster, played on the twin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from cotenant.cluster.alignment import ATTEMPTS, differing, pass_on, settle
from cotenant.cluster.json_patch import Operation
from cotenant.cluster.memory import InMemoryCluster
from cotenant.cluster.objects import RAY_CLUSTER, RAY_SERVICE, Object, Ref, Target, version_of
from cotenant.cluster.refusals import may_not
from cotenant.cluster.rollout import Proposal, carry_out, find_service, propose
from cotenant.errors import ClusterBusy
from tests.contracts.cluster import ray_cluster, ray_service, worker_group
from tests.contracts.ray_statuses import ACTIVE, PENDING, applications, status

pytestmark = pytest.mark.unit

TARGET = Target("shop", "prod", "shop")
SERVICE = Ref(RAY_SERVICE, "shop", "shop")
RUNNING = applications(writer="RUNNING")


@pytest.fixture
def cluster() -> InMemoryCluster:
    return InMemoryCluster(namespaces=("default", "shop"))


def service(most: int, image: str = "engines:1") -> Object:
    made = ray_service("shop")
    made["spec"]["rayClusterConfig"]["workerGroupSpecs"] = [
        worker_group("front", 1),
        worker_group("shared", most, image=image),
    ]
    return made


def proposed(cluster: InMemoryCluster, most: int, image: str = "engines:1") -> Proposal:
    return propose(cluster, [service(most, image)], TARGET)


def runs(cluster: InMemoryCluster, most: int = 2, *, pending: int | None = None) -> None:
    """`most` is what the active Ray cluster has, `pending` what one beside it has; the operator has seen it all."""
    applied = cluster.apply(service(most))
    generation = applied["metadata"]["generation"]
    cluster.create(ray_cluster("shop", worker_group("front", 1), worker_group("shared", most, replicas=2)))
    if pending is not None:
        cluster.create(ray_cluster("shop", worker_group("shared", pending), name=PENDING))
    beside = RUNNING if pending is not None else None
    cluster.set_status(SERVICE, status(generation, active=RUNNING, pending=beside))


def bounds(cluster: InMemoryCluster, name: str = ACTIVE) -> dict[str, tuple[int, int, int]]:
    live = cluster.get(Ref(RAY_CLUSTER, name, "shop"))
    assert live is not None
    groups = live["spec"]["workerGroupSpecs"]
    return {each["groupName"]: (each["replicas"], each["minReplicas"], each["maxReplicas"]) for each in groups}


def applied(cluster: InMemoryCluster, proposal: Proposal) -> Object:
    made = carry_out(cluster, proposal)
    assert made is not None
    return made


def test_a_change_of_bounds_is_proposed_and_passed_on(cluster: InMemoryCluster) -> None:
    runs(cluster, 2)
    proposal = proposed(cluster, 8)
    assert [str(each) for each in proposal.bounds] == [f"RayCluster {ACTIVE}: group shared max 2 -> 8"]
    assert proposal.size == 2
    assert bounds(cluster)["shared"] == (2, 0, 2)
    done = pass_on(cluster, proposal.bounds, applied(cluster, proposal))
    assert (done.shifts, done.notes) == (proposal.bounds, ())
    assert bounds(cluster) == {"front": (1, 0, 1), "shared": (2, 0, 8)}
    cluster.set_status(SERVICE, status(2, active=RUNNING))
    assert proposed(cluster, 8).size == 0


def test_what_was_proposed_for_one_that_kuberay_has_turned_from_is_told(cluster: InMemoryCluster) -> None:
    runs(cluster, 2)
    proposal = proposed(cluster, 8)
    applied(cluster, proposal)
    cluster.set_status(SERVICE, status(2, active=RUNNING, pending=applications(writer="DEPLOYING")))
    now = find_service(cluster, TARGET)
    assert now is not None
    done = pass_on(cluster, proposal.bounds, now)
    assert done.shifts == ()
    assert f"RayCluster {ACTIVE} stays otherwise than applied, group shared has max 2, not 8" in done.notes[0]
    assert bounds(cluster)["shared"] == (2, 0, 2)


def test_before_the_first_ray_cluster_there_is_nothing_to_pass_on(cluster: InMemoryCluster) -> None:
    first = proposed(cluster, 2)
    assert first.bounds == ()
    made = applied(cluster, first)
    assert pass_on(cluster, first.bounds, made).shifts == ()
    assert settle(cluster, made).shifts == ()
    assert proposed(cluster, 8).bounds == ()
    cluster.set_status(SERVICE, status(1, active=RUNNING))
    assert proposed(cluster, 8).bounds == ()


def test_a_ray_cluster_that_will_be_replaced_is_left_alone_until_it_turns_out_to_stay(cluster: InMemoryCluster) -> None:
    runs(cluster, 2)
    proposal = proposed(cluster, 8, "engines:2")
    assert proposal.bounds == ()
    made = applied(cluster, proposal)
    assert pass_on(cluster, proposal.bounds, made).shifts == ()
    cluster.set_status(SERVICE, status(2, active=RUNNING, pending=applications(writer="DEPLOYING")))
    assert settle(cluster, made).shifts == ()
    assert bounds(cluster)["shared"] == (2, 0, 2)
    cluster.set_status(SERVICE, status(2, active=RUNNING))
    assert [str(each) for each in settle(cluster, made).shifts] == [f"RayCluster {ACTIVE}: group shared max 2 -> 8"]
    assert bounds(cluster)["shared"] == (2, 0, 8)


def test_while_one_comes_up_beside_another_the_new_one_gets_them(cluster: InMemoryCluster) -> None:
    runs(cluster, 2, pending=2)
    proposal = proposed(cluster, 1)
    pass_on(cluster, proposal.bounds, applied(cluster, proposal))
    assert bounds(cluster, PENDING)["shared"] == (1, 0, 1)
    assert bounds(cluster)["shared"] == (2, 0, 2)


def test_a_change_that_kuberay_has_not_seen_yet_may_replace_it_so_a_note_says_what_waits(
    cluster: InMemoryCluster,
) -> None:
    runs(cluster, 2)
    cluster.apply(service(2, "engines:2"))
    proposal = proposed(cluster, 8, "engines:2")
    assert proposal.bounds == ()
    (note,) = proposal.notes
    assert f"RayCluster {ACTIVE} stays otherwise than applied, group shared has max 2, not 8" in note
    assert "not taken up" in note


def test_what_an_interrupted_deploy_left_is_passed_on_by_the_next(cluster: InMemoryCluster) -> None:
    runs(cluster, 2)
    applied(cluster, proposed(cluster, 8))
    cluster.set_status(SERVICE, status(2, active=RUNNING))
    again = proposed(cluster, 8)
    assert (again.changes, len(again.bounds)) == ((), 1)
    pass_on(cluster, again.bounds, applied(cluster, again))
    assert bounds(cluster)["shared"] == (2, 0, 8)


class Others:
    """Somebody who reorders the groups each time before a patch comes in."""

    def __init__(self, cluster: InMemoryCluster, times: int) -> None:
        self._cluster, self._times, self._edit = cluster, times, cluster.edit
        self.asked = 0

    def edit(self, ref: Ref, operations: Sequence[Operation], *, dry_run: bool = False) -> Object | None:
        self.asked += 1
        if self.asked <= self._times:
            live = self._cluster.get(ref)
            assert live is not None
            groups = list(reversed(live["spec"]["workerGroupSpecs"]))
            self._cluster.patch(ref, {"spec": {"workerGroupSpecs": groups}}, manager="operator")
        return self._edit(ref, operations, dry_run=dry_run)


def test_groups_that_change_places_meanwhile_are_read_again(
    cluster: InMemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs(cluster, 2)
    proposal = proposed(cluster, 8)
    made = applied(cluster, proposal)
    others = Others(cluster, 1)
    monkeypatch.setattr(cluster, "edit", others.edit)
    assert pass_on(cluster, proposal.bounds, made).shifts == proposal.bounds
    assert others.asked == 2
    assert bounds(cluster) == {"front": (1, 0, 1), "shared": (2, 0, 8)}


def test_others_who_write_all_the_time_are_given_up_with_a_note(
    cluster: InMemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs(cluster, 2)
    proposal = proposed(cluster, 8)
    made = applied(cluster, proposal)
    others = Others(cluster, 99)
    monkeypatch.setattr(cluster, "edit", others.edit)
    (note,) = pass_on(cluster, proposal.bounds, made).notes
    assert others.asked == ATTEMPTS
    assert "another than was read" in note
    assert note.endswith(f"{ATTEMPTS} times; deploy again")


def forbid(cluster: InMemoryCluster, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    method = {"get": "get", "patch": "edit"}[verb]
    whole = getattr(cluster, method)

    def guarded(ref: Ref, *rest: Any, **named: Any) -> Any:
        if ref.kind == RAY_CLUSTER:
            raise may_not(f"{verb} {ref}", "deployer", verb, "rayclusters", group="ray.io", namespace="shop")
        return whole(ref, *rest, **named)

    monkeypatch.setattr(cluster, method, guarded)


@pytest.mark.parametrize("verb", ["get", "patch"])
def test_a_missing_right_is_a_note_with_the_line_that_asks_for_it(
    cluster: InMemoryCluster, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    runs(cluster, 2)
    forbid(cluster, monkeypatch, verb)
    proposal = proposed(cluster, 8)
    assert proposal.bounds == ()
    (note,) = proposal.notes
    assert f"RayCluster {ACTIVE}" in note
    assert note.endswith(f"kubectl auth can-i {verb} rayclusters.ray.io -n shop")
    made = applied(cluster, proposal)
    cluster.set_status(SERVICE, status(2, active=RUNNING))
    assert settle(cluster, made).notes == proposal.notes
    assert differing(cluster, made) == ()
    assert "group shared has max 2, not 8" in note or verb == "get"


def test_an_api_server_that_goes_away_ends_a_proposal_but_not_what_was_applied(
    cluster: InMemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs(cluster, 2)
    proposal = proposed(cluster, 8)
    made = applied(cluster, proposal)

    def away(*_: Any, **__: Any) -> Any:
        raise ClusterBusy("the API server does not answer")

    monkeypatch.setattr(cluster, "edit", away)
    with pytest.raises(ClusterBusy):
        proposed(cluster, 8)
    assert "does not answer" in pass_on(cluster, proposal.bounds, made).notes[0]
    monkeypatch.setattr(cluster, "get", away)
    assert "does not answer" in settle(cluster, made).notes[0]


def test_whoever_looks_is_told_what_differs_and_nothing_is_changed(
    cluster: InMemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs(cluster, 2)
    live = cluster.get(SERVICE)
    assert live is not None
    assert differing(cluster, live) == ()
    applied(cluster, proposed(cluster, 8))
    cluster.set_status(SERVICE, status(2, active=RUNNING))
    live = cluster.get(SERVICE)
    assert live is not None
    before = version_of(cluster.get(Ref(RAY_CLUSTER, ACTIVE, "shop")) or {})
    (told,) = differing(cluster, live)
    assert "group shared has max 2, not 8: cotenant deploy passes it on" in told
    assert version_of(cluster.get(Ref(RAY_CLUSTER, ACTIVE, "shop")) or {}) == before
    forbid(cluster, monkeypatch, "get")
    assert "may not get rayclusters.ray.io" in differing(cluster, live)[0]
