"""What the API server's answers mean, and how often it is asked."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cotenant.cluster.objects import Kind
from cotenant.cluster.refusals import does_not_apply, kind_missing, refused
from cotenant.cluster.retries import Patience, retry_after_s
from cotenant.errors import (
    Changed,
    ClusterBusy,
    ClusterError,
    FieldsOwned,
    Gone,
    ManifestRefused,
    NamespaceMissing,
    NotConnected,
    NotPermitted,
)

pytestmark = pytest.mark.unit


def answer(code: int, message: str = "", **told: Any) -> ClusterError:
    body = json.dumps({"kind": "Status", "code": code, "message": message, **told}).encode()
    return refused(code, body, "apply Thing a in shop", "shop")


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (answer(401, "Unauthorized"), NotConnected, "log in again"),
        (
            answer(
                403, 'pods is forbidden: User "me" cannot list resource "pods" in API group "" in the namespace "x"'
            ),
            NotPermitted,
            "me may not list pods in namespace x;",
        ),
        (
            answer(
                403, 'User "me" cannot patch resource "computeclasses" in API group "cloud.google.com" at the scope'
            ),
            NotPermitted,
            "kubectl auth can-i patch computeclasses.cloud.google.com",
        ),
        (answer(403, 'pods "a" is forbidden: exceeded quota: gpus, used: 4'), ManifestRefused, "raise the quota"),
        (
            answer(403, "is being terminated", details={"causes": [{"reason": "NamespaceTerminating"}]}),
            NamespaceMissing,
            "namespace shop is being deleted; wait",
        ),
        (answer(403, "policy says no"), NotPermitted, "policy says no"),
        (answer(404, 'namespaces "shop" not found'), NamespaceMissing, "create the namespace first"),
        (answer(409, "the object has been modified"), Changed, "has been modified"),
        (answer(410, "too old"), Gone, "too old"),
        (answer(500, "etcd", reason="Expired"), Gone, "etcd"),
        (
            answer(422, "x", details={"causes": [{"field": "spec.replicas", "message": "must be positive"}]}),
            ManifestRefused,
            "spec.replicas: must be positive",
        ),
        (answer(429), ClusterBusy, "429"),
        (answer(503, "no leader"), ClusterBusy, "no leader"),
        (answer(418, "teapot"), ClusterError, "teapot"),
        (refused(502, b"<html>\n bad  gateway</html>", "x"), ClusterBusy, "<html> bad gateway</html>"),
    ],
)
def test_each_answer_is_one_of_our_errors_in_plain_words(error: ClusterError, kind: type, words: str) -> None:
    assert type(error) is kind
    assert words in str(error)


def test_a_conflict_names_each_manager_and_its_fields() -> None:
    causes = [
        {"reason": "FieldManagerConflict", "message": 'conflict with "helm" using v1', "field": ".spec.a"},
        {"reason": "FieldManagerConflict", "message": 'conflict with "kubectl"', "field": ".spec.b"},
        {"reason": "FieldManagerConflict", "message": 'conflict with "helm" using v1', "field": ".spec.c"},
    ]
    error = answer(409, "Apply failed", details={"causes": causes})
    assert isinstance(error, FieldsOwned)
    assert error.owners == {"helm": [".spec.a", ".spec.c"], "kubectl": [".spec.b"]}
    assert "helm owns .spec.a, .spec.c" in str(error)


@pytest.mark.parametrize(
    ("code", "details", "changed"),
    [
        pytest.param(422, {}, True, id="a test that does not hold"),
        pytest.param(422, {"causes": [{"field": "spec.a", "message": "must be 1"}]}, False, id="a wrong field"),
        pytest.param(422, {"causes": [{"message": "at the most 4 GPUs"}]}, False, id="a policy"),
        pytest.param(400, {}, False, id="no patch at all"),
    ],
)
def test_a_patch_for_another_object_is_told_from_one_that_is_refused(
    code: int, details: dict[str, Any], changed: bool
) -> None:
    body = json.dumps({"kind": "Status", "message": "policy says no", "details": details}).encode()
    assert does_not_apply(code, body) is changed


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Kind("ray.io/v1", "RayService"), "--version 1.7.0"),
        (Kind("monitoring.googleapis.com/v1", "PodMonitoring"), "managed Prometheus"),
        (Kind("keda.sh/v1alpha1", "ScaledObject"), "KEDA"),
        (Kind("example.com/v1", "Odd"), "take it out of the manifests"),
    ],
)
def test_a_missing_kind_says_what_brings_it(kind: Kind, words: str) -> None:
    assert words in str(kind_missing(kind))


def test_waits_double_up_to_a_bound_and_end() -> None:
    patience = Patience(attempts=6, first_s=1, longest_s=5)
    assert [patience.wait_s(attempt) for attempt in range(1, 7)] == [1, 2, 4, 5, 5, None]


def test_a_server_that_says_how_long_is_waited_for_within_reason() -> None:
    patience = Patience(longest_asked_s=60)
    assert patience.wait_s(1, 7) == 7
    assert patience.wait_s(1, 0) == patience.first_s
    assert patience.wait_s(1, 3600) == 60


@pytest.mark.parametrize(
    ("header", "seconds"), [(None, None), ("5", 5.0), ("-1", None), ("soon", None), ("nan", None), ("inf", None)]
)
def test_retry_after_is_read_as_seconds_or_not_at_all(header: str | None, seconds: float | None) -> None:
    assert retry_after_s(header) == seconds
