"""In which order, what is left over, and what a difference looks like."""

from __future__ import annotations

from typing import Any

import pytest

from cotenant.cluster.diff import difference
from cotenant.cluster.objects import Kind, Ref, environment_labels
from cotenant.cluster.order import in_order, left_over
from tests.contracts.cluster import config, ray_service

pytestmark = pytest.mark.unit

LABELS = environment_labels("shop", "prod")


def thing(kind: str, name: str = "a", api: str = "v1", **metadata: Any) -> dict[str, Any]:
    return {"apiVersion": api, "kind": kind, "metadata": {"name": name, "namespace": "shop", **metadata}}


def test_what_others_need_comes_first_and_the_ray_service_last() -> None:
    things = [
        ray_service("shop"),
        thing("PodMonitoring", api="monitoring.googleapis.com/v1"),
        thing("ConfigMap", "b"),
        thing("ServiceAccount"),
        thing("ConfigMap", "a"),
        thing("Namespace"),
    ]
    assert [(each["kind"], each["metadata"]["name"]) for each in in_order(things)] == [  # type: ignore[index]
        ("Namespace", "a"),
        ("ServiceAccount", "a"),
        ("ConfigMap", "b"),
        ("ConfigMap", "a"),
        ("PodMonitoring", "a"),
        ("RayService", "shop"),
    ]


def test_what_is_not_rendered_any_more_is_left_over_users_first() -> None:
    found = [
        thing("ServiceAccount", "old", labels=LABELS),
        thing("Deployment", "old", "apps/v1", labels=LABELS),
        thing("ConfigMap", "kept", labels=LABELS),
    ]
    gone = left_over(found, [thing("ConfigMap", "kept")], LABELS)
    assert [str(each) for each in gone] == ["Deployment old", "ServiceAccount old"]


@pytest.mark.parametrize(
    "spared",
    [
        thing("ConfigMap", labels={**LABELS, "cotenant-environment": "dev"}),
        thing("ConfigMap", labels={**LABELS, "app.kubernetes.io/part-of": "another"}),
        thing("ConfigMap", labels={"cotenant-environment": "prod", "app.kubernetes.io/part-of": "shop"}),
        thing("ConfigMap", labels={**LABELS, "cotenant-revision": "3"}),
        thing("ConfigMap", labels=LABELS, ownerReferences=[{"kind": "RayCluster", "name": "x"}]),
        thing("Namespace", labels=LABELS),
        thing("PersistentVolumeClaim", labels=LABELS),
        thing("Secret", labels=LABELS),
    ],
    ids=["environment", "platform", "not ours", "revision", "owned", "namespace", "volume", "secret"],
)
def test_what_is_spared(spared: dict[str, Any]) -> None:
    assert left_over([spared], [], LABELS) == []


def test_an_object_that_moved_to_a_newer_version_of_its_api_is_the_same() -> None:
    old = thing("PodDisruptionBudget", api="policy/v1beta1", labels=LABELS)
    assert left_over([old], [thing("PodDisruptionBudget", api="policy/v1")], LABELS) == []


def test_a_changed_line_of_a_serve_config_is_one_line_of_the_difference() -> None:
    before = ray_service("shop", serve="applications:\n- name: writer\n  args: {steps: 4}\n- name: painter\n")
    after = ray_service("shop", serve="applications:\n- name: writer\n  args: {steps: 5}\n- name: painter\n")
    changed = [line for line in difference(before, after, "RayService shop").splitlines() if line[:1] in "+-"]
    assert changed == [
        "--- RayService shop (live)",
        "+++ RayService shop (applied)",
        "-      args: {steps: 4}",
        "+      args: {steps: 5}",
    ]


def test_what_the_server_keeps_for_itself_is_no_difference() -> None:
    before, after = ray_service("shop"), ray_service("shop")
    before["metadata"] |= {"resourceVersion": "7", "generation": 2, "uid": "u", "managedFields": [{"manager": "x"}]}
    before["metadata"]["annotations"] = {"kubectl.kubernetes.io/last-applied-configuration": "{}"}
    before["status"] = {"serviceStatus": "Running"}
    assert difference(before, after, "x") == ""


def test_what_a_secret_holds_is_never_shown() -> None:
    secret = {**thing("Secret"), "data": {"token": "aHVudGVyMg=="}}
    text = difference(None, secret, "Secret a")
    assert "aHVudGVyMg" not in text
    assert "hidden, 12 characters" in text


def test_what_goes_is_shown_whole() -> None:
    assert "-  size: '1'" in difference(config("shop"), None, "ConfigMap settings").splitlines()


def test_a_ref_is_named_by_kind_and_name() -> None:
    assert str(Ref(Kind("ray.io/v1", "RayService"), "shop", "here")) == "RayService shop"
