"""What every cluster promises (`cotenant.cluster.edge`). Runs against the in-memory twin and a real API server.

A subclass gives `cluster` and `world`, which is everybody else: another client, and the operator.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Mapping
from typing import Any, Protocol

import pytest

from cotenant.cluster.edge import Cluster
from cotenant.cluster.json_patch import Operation
from cotenant.cluster.objects import CONFIG_MAP, NAMESPACE, RAY_CLUSTER, RAY_SERVICE, Kind, Object, Ref, version_of
from cotenant.errors import Changed, FieldsOwned, Gone, KindMissing, ManifestRefused, NamespaceMissing


class World(Protocol):
    """Everybody else who writes to the cluster."""

    def patch(self, ref: Ref, changes: Mapping[str, Any], manager: str) -> None: ...

    def set_status(self, ref: Ref, status: Mapping[str, Any]) -> None: ...

    def too_old(self) -> str:
        """A version from which nothing can be watched any more."""
        ...


def config(namespace: str, name: str = "settings", **data: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace},
        "data": data or {"size": "1"},
    }


def ray_service(namespace: str, name: str = "shop", serve: str = "applications: [{name: writer}]\n") -> Object:
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "serveConfigV2": serve,
            "rayClusterConfig": {
                "rayVersion": "2.60.0",
                "headGroupSpec": {
                    "rayStartParams": {"num-cpus": "0"},
                    "template": {"spec": {"containers": [{"name": "ray-head", "image": "doors:1"}]}},
                },
            },
        },
    }


def worker_group(name: str, most: int, *, least: int = 0, replicas: int = 1, image: str = "engines:1") -> Object:
    return {
        "groupName": name,
        "replicas": replicas,
        "minReplicas": least,
        "maxReplicas": most,
        "rayStartParams": {},
        "template": {"spec": {"containers": [{"name": "ray-worker", "image": image}]}},
    }


def ray_cluster(namespace: str, *groups: Object, name: str = "shop-raycluster-a") -> Object:
    """As KubeRay makes it of a RayService."""
    config = ray_service(namespace)["spec"]["rayClusterConfig"]
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {**config, "workerGroupSpecs": list(groups)},
    }


def most_of(place: int, group: str, most: object) -> list[Operation]:
    """The patch that gives the group at `place` another maximum, if it is that group."""
    at = ("spec", "workerGroupSpecs", place)
    return [Operation("test", (*at, "groupName"), group), Operation("replace", (*at, "maxReplicas"), most)]


class ClusterContract:
    @pytest.fixture
    def namespace(self, cluster: Cluster) -> str:
        name = f"t-{uuid.uuid4().hex[:8]}"
        cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        return name

    def test_what_is_not_there_is_none(self, cluster: Cluster, namespace: str) -> None:
        assert cluster.get(Ref(CONFIG_MAP, "none", namespace)) is None
        assert cluster.delete(Ref(CONFIG_MAP, "none", namespace)) is False

    def test_what_is_applied_is_there(self, cluster: Cluster, namespace: str) -> None:
        cluster.apply(config(namespace, size="1"))
        got = cluster.get(Ref(CONFIG_MAP, "settings", namespace))
        assert got is not None
        assert got["data"] == {"size": "1"}
        assert (got["apiVersion"], got["kind"]) == ("v1", "ConfigMap")

    def test_a_dry_run_answers_the_same_and_changes_nothing(self, cluster: Cluster, namespace: str) -> None:
        answer = cluster.apply(config(namespace, size="2"), dry_run=True)
        assert answer["data"] == {"size": "2"}
        assert cluster.get(Ref(CONFIG_MAP, "settings", namespace)) is None

    def test_applying_the_same_again_changes_no_version(self, cluster: Cluster, namespace: str) -> None:
        first = cluster.apply(config(namespace))
        assert version_of(cluster.apply(config(namespace))) == version_of(first)

    def test_what_an_apply_leaves_out_goes(self, cluster: Cluster, namespace: str) -> None:
        cluster.apply(config(namespace, size="1", colour="red"))
        assert cluster.apply(config(namespace, size="1"))["data"] == {"size": "1"}

    def test_what_others_added_stays(self, cluster: Cluster, world: World, namespace: str) -> None:
        cluster.apply(config(namespace, size="1"))
        world.patch(Ref(CONFIG_MAP, "settings", namespace), {"data": {"theirs": "x"}}, "others")
        assert cluster.apply(config(namespace, size="2"))["data"] == {"size": "2", "theirs": "x"}

    def test_a_field_that_others_set_is_refused_with_their_name(
        self, cluster: Cluster, world: World, namespace: str
    ) -> None:
        cluster.apply(config(namespace, size="1"))
        ref = Ref(CONFIG_MAP, "settings", namespace)
        world.patch(ref, {"data": {"size": "9"}}, "kubectl-edit")
        for dry_run in (True, False):
            with pytest.raises(FieldsOwned, match=r"kubectl-edit owns \.data\.size") as refused:
                cluster.apply(config(namespace, size="1", more="2"), dry_run=dry_run)
            assert refused.value.owners == {"kubectl-edit": [".data.size"]}
        got = cluster.get(ref)
        assert got is not None
        assert got["data"] == {"size": "9"}

    def test_a_field_that_others_set_to_the_same_is_no_conflict(
        self, cluster: Cluster, world: World, namespace: str
    ) -> None:
        cluster.apply(config(namespace, size="1"))
        world.patch(Ref(CONFIG_MAP, "settings", namespace), {"data": {"size": "9"}}, "kubectl-edit")
        assert cluster.apply(config(namespace, size="9"))["data"] == {"size": "9"}

    def test_force_takes_a_field_back_for_good(self, cluster: Cluster, world: World, namespace: str) -> None:
        cluster.apply(config(namespace, size="1"))
        world.patch(Ref(CONFIG_MAP, "settings", namespace), {"data": {"size": "9"}}, "kubectl-edit")
        assert cluster.apply(config(namespace, size="1"), force=True)["data"] == {"size": "1"}
        assert cluster.apply(config(namespace, size="2"))["data"] == {"size": "2"}

    def test_ownership_is_told_by_manager(self, cluster: Cluster, namespace: str) -> None:
        fields = cluster.apply(config(namespace, size="1"))["metadata"]["managedFields"]
        assert [(each["manager"], each["operation"]) for each in fields] == [("cotenant", "Apply")]
        assert fields[0]["fieldsV1"]["f:data"] == {"f:size": {}}

    def test_an_object_is_created_once(self, cluster: Cluster, namespace: str) -> None:
        cluster.create(config(namespace))
        with pytest.raises(Changed, match="already exists"):
            cluster.create(config(namespace))

    def test_listing_takes_a_namespace_and_labels(self, cluster: Cluster, namespace: str) -> None:
        for name, colour in (("a", "red"), ("b", "blue")):
            thing = config(namespace, name)
            thing["metadata"]["labels"] = {"colour": colour, "shape": "round"}
            cluster.apply(thing)
        listed = cluster.list(CONFIG_MAP, namespace, {"colour": "blue", "shape": "round"})
        assert [each["metadata"]["name"] for each in listed.items] == ["b"]
        assert listed.items[0]["kind"] == "ConfigMap"
        assert {"a", "b"} <= {each["metadata"]["name"] for each in cluster.list(CONFIG_MAP, namespace).items}

    def test_what_belongs_to_the_whole_cluster_is_listed_beside_a_namespace(
        self, cluster: Cluster, namespace: str
    ) -> None:
        assert namespace in {each["metadata"]["name"] for each in cluster.list(NAMESPACE, namespace).items}

    def test_deleting_takes_it_away(self, cluster: Cluster, namespace: str) -> None:
        cluster.apply(config(namespace))
        assert cluster.delete(Ref(CONFIG_MAP, "settings", namespace)) is True
        assert cluster.get(Ref(CONFIG_MAP, "settings", namespace)) is None

    def test_a_kind_that_nobody_installed_is_said(self, cluster: Cluster, namespace: str) -> None:
        for kind in (Kind("nobody.example/v1", "Thing"), Kind("v1", "Thing")):
            with pytest.raises(KindMissing, match="knows no Thing"):
                cluster.get(Ref(kind, "a", namespace))

    def test_a_namespace_that_is_not_there_is_said(self, cluster: Cluster) -> None:
        for dry_run in (True, False):
            with pytest.raises(NamespaceMissing, match=r"nowhere.* not found; create the namespace first"):
                cluster.apply(config("nowhere"), dry_run=dry_run)

    def test_an_object_without_its_namespace_is_refused(self, cluster: Cluster) -> None:
        thing = config("x")
        del thing["metadata"]["namespace"]
        with pytest.raises((ManifestRefused, NamespaceMissing)):
            cluster.apply(thing)

    def test_a_spec_that_changes_is_a_new_generation_and_a_status_is_none(
        self, cluster: Cluster, world: World, namespace: str
    ) -> None:
        ref = Ref(RAY_SERVICE, "shop", namespace)
        assert cluster.apply(ray_service(namespace))["metadata"]["generation"] == 1
        assert cluster.apply(ray_service(namespace, serve="applications: []\n"))["metadata"]["generation"] == 2
        world.set_status(ref, {"serviceStatus": "Running", "observedGeneration": 2})
        got = cluster.get(ref)
        assert got is not None
        assert got["metadata"]["generation"] == 2
        assert got["status"]["serviceStatus"] == "Running"

    def test_an_apply_leaves_the_status_alone(self, cluster: Cluster, world: World, namespace: str) -> None:
        cluster.apply(ray_service(namespace))
        world.set_status(Ref(RAY_SERVICE, "shop", namespace), {"serviceStatus": "Running"})
        after = cluster.apply({**ray_service(namespace), "status": {"serviceStatus": "Never"}})
        assert after["status"]["serviceStatus"] == "Running"

    def test_an_edit_changes_one_field_of_a_list_and_leaves_the_rest(self, cluster: Cluster, namespace: str) -> None:
        made = cluster.create(ray_cluster(namespace, worker_group("front", 1), worker_group("shared", 2, replicas=2)))
        ref = Ref(RAY_CLUSTER, "shop-raycluster-a", namespace)
        after = cluster.edit(ref, most_of(1, "shared", 8))
        assert after is not None
        assert after["kind"] == "RayCluster"
        groups = [(each["groupName"], each["replicas"], each["maxReplicas"]) for each in _groups(after)]
        assert groups == [("front", 1, 1), ("shared", 2, 8)]
        assert after["metadata"]["generation"] == made["metadata"]["generation"] + 1
        got = cluster.get(ref)
        assert got is not None
        assert _groups(got) == _groups(after)
        assert "cotenant" in {each["manager"] for each in got["metadata"]["managedFields"]}

    def test_an_edit_that_finds_something_else_changes_nothing(self, cluster: Cluster, namespace: str) -> None:
        made = cluster.create(ray_cluster(namespace, worker_group("front", 1), worker_group("shared", 2)))
        ref = Ref(RAY_CLUSTER, "shop-raycluster-a", namespace)
        for wrong in (
            [*most_of(1, "shared", 8), *most_of(0, "shared", 8)],
            most_of(7, "shared", 8),
            [Operation("test", ("metadata", "annotations", "example.com/none"), "x")],
        ):
            for dry_run in (True, False):
                with pytest.raises(Changed, match=r"edit RayCluster shop-raycluster-a in .* another than was read"):
                    cluster.edit(ref, wrong, dry_run=dry_run)
        got = cluster.get(ref)
        assert got is not None
        assert version_of(got) == version_of(made)

    def test_an_edit_finds_keys_with_slashes(self, cluster: Cluster, namespace: str) -> None:
        thing = ray_cluster(namespace, worker_group("shared", 2))
        thing["metadata"]["annotations"] = {"example.com/a": "x"}
        cluster.create(thing)
        ref = Ref(RAY_CLUSTER, "shop-raycluster-a", namespace)
        after = cluster.edit(ref, [Operation("replace", ("metadata", "annotations", "example.com/a"), "y")])
        assert after is not None
        assert after["metadata"]["annotations"]["example.com/a"] == "y"

    def test_an_edit_by_dry_run_answers_the_same_and_changes_nothing(self, cluster: Cluster, namespace: str) -> None:
        made = cluster.create(ray_cluster(namespace, worker_group("shared", 2)))
        ref = Ref(RAY_CLUSTER, "shop-raycluster-a", namespace)
        after = cluster.edit(ref, most_of(0, "shared", 8), dry_run=True)
        assert after is not None
        assert _groups(after)[0]["maxReplicas"] == 8
        got = cluster.get(ref)
        assert got is not None
        assert version_of(got) == version_of(made)

    def test_an_edit_of_what_is_not_there_is_none(self, cluster: Cluster, namespace: str) -> None:
        assert cluster.edit(Ref(RAY_CLUSTER, "none", namespace), most_of(0, "shared", 8)) is None

    def test_a_watch_tells_what_happened_since(self, cluster: Cluster, world: World, namespace: str) -> None:
        since = cluster.list(CONFIG_MAP, namespace).version
        cluster.apply(config(namespace, "a", size="1"))
        cluster.apply(config(namespace, "b", size="1"))
        world.patch(Ref(CONFIG_MAP, "a", namespace), {"data": {"size": "2"}}, "others")
        cluster.delete(Ref(CONFIG_MAP, "a", namespace))
        told = [
            (each.type, each.object["data"]["size"], each.version)
            for each in cluster.watch(CONFIG_MAP, namespace, since=since, timeout_s=1, name="a")
            if each.type != "bookmark"
        ]
        assert [each[:2] for each in told] == [("added", "1"), ("modified", "2"), ("deleted", "2")]
        assert [int(each[2]) for each in told] == sorted(int(each[2]) for each in told)
        again = cluster.watch(CONFIG_MAP, namespace, since=told[0][2], timeout_s=1, name="a")
        assert [each.type for each in again if each.type != "bookmark"] == ["modified", "deleted"]

    def test_a_watch_tells_what_happens_while_it_runs(self, cluster: Cluster, namespace: str) -> None:
        since = cluster.list(RAY_SERVICE, namespace).version
        later = threading.Timer(0.3, cluster.apply, [ray_service(namespace)])
        later.start()
        try:
            changes = cluster.watch(RAY_SERVICE, namespace, since=since, timeout_s=10, name="shop")
            first = next(each for each in changes if each.type != "bookmark")
        finally:
            later.join()
        assert (first.type, first.object["metadata"]["name"]) == ("added", "shop")

    def test_a_watch_from_too_long_ago_is_gone(self, cluster: Cluster, world: World, namespace: str) -> None:
        cluster.apply(ray_service(namespace))
        with pytest.raises(Gone):
            list(cluster.watch(RAY_SERVICE, namespace, since=world.too_old(), timeout_s=1))


def _groups(ray_cluster: Object) -> list[Object]:
    return list(ray_cluster["spec"]["workerGroupSpecs"])
