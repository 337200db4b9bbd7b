"""What the API server says when it refuses, in plain words and as one of our errors. Pure.

It answers with a `Status` object: HTTP code, a `reason` word, a message, and sometimes `details` with causes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from cotenant.cluster.objects import Kind, Ref
from cotenant.errors import (
    Changed,
    ClusterBusy,
    ClusterError,
    FieldsOwned,
    Gone,
    KindMissing,
    ManifestRefused,
    NamespaceMissing,
    NotConnected,
    NotPermitted,
)

#: The release of KubeRay's operator that our manifests are written for.
KUBERAY = "1.7.0"

_FORBIDDEN = re.compile(
    r'User "(?P<user>[^"]*)" cannot (?P<verb>\w+) resource "(?P<resource>[^"]+)" in API group "(?P<group>[^"]*)"'
    r'(?: in the namespace "(?P<namespace>[^"]+)")?'
)
_OWNER = re.compile(r'conflict with "(?P<manager>[^"]*)"')


def refused(code: int, body: bytes, what: str, namespace: str | None = None) -> ClusterError:
    """The error for an answer with HTTP status `code`. `what` is what was asked: "apply ConfigMap a"."""
    status = _status(body)
    reason, message = str(status.get("reason") or ""), _sentence(str(status.get("message") or ""), body)
    if code == 401:
        return NotConnected(
            f"the cluster does not accept the login ({message or 'Unauthorized'}); log in again, for GKE with "
            "gcloud container clusters get-credentials CLUSTER --region REGION"
        )
    if code == 403:
        return _forbidden(status, message, what, namespace)
    if code == 404:
        return NamespaceMissing(f"can't {what}: {message}; create the namespace first")
    if code == 409:
        return _conflict(status, message, what)
    if code == 410 or reason in ("Expired", "Gone"):
        return Gone(f"can't {what}: {message or 'that version is too old'}")
    if code in (400, 413, 415, 422):
        return ManifestRefused(f"can't {what}: {_causes(status) or message}")
    if code == 429 or code >= 500:
        return ClusterBusy(
            f"can't {what}: the API server answers {code} ({message or reason}) however often it is asked; "
            "try again when it is well, nothing that was done is lost"
        )
    return ClusterError(f"can't {what}: the API server answers {code} ({message or reason})")


def does_not_apply(code: int, body: bytes) -> bool:
    """Whether that is the answer to a JSON patch that tests for something else than there is.

    An object that would be wrong after it, or that a policy refuses, has the same code; that names causes.
    """
    return code == 422 and not (_status(body).get("details") or {}).get("causes")


def kind_missing(kind: Kind) -> KindMissing:
    """Says how to install what brings the kind."""
    if kind.group == "ray.io":
        return KindMissing(
            f"the cluster knows no {kind}: KubeRay's operator is not installed; install it with\n"
            "  helm repo add kuberay https://ray-project.github.io/kuberay-helm/\n"
            f"  helm install kuberay-operator kuberay/kuberay-operator --version {KUBERAY} "
            "--namespace kuberay-system --create-namespace"
        )
    owner = _BROUGHT_BY.get(kind.group)
    return KindMissing(
        f"the cluster knows no {kind}; "
        + (f"it comes with {owner}" if owner else "install what brings it, or take it out of the manifests")
    )


_BROUGHT_BY = {
    "autoscaling.x-k8s.io": "GKE 1.35.2-gke.1842000 and above; for an older cluster set gke.version to what it is",
    "cloud.google.com": "GKE: this cluster is another, or its version too old",
    "gateway.networking.k8s.io": "the Gateway API; on GKE switch it on with --gateway-api=standard",
    "keda.sh": "KEDA",
    "monitoring.googleapis.com": "GKE's managed Prometheus; switch it on with --enable-managed-prometheus",
    "networking.gke.io": "GKE: this cluster is another, or its version too old",
}


def owners_of(status: Mapping[str, Any]) -> dict[str, list[str]]:
    """Fields in conflict by the manager that owns them, from the causes of a refused apply."""
    owners: dict[str, list[str]] = {}
    for cause in status.get("details", {}).get("causes") or ():
        if cause.get("reason") == "FieldManagerConflict":
            found = _OWNER.search(str(cause.get("message", "")))
            owners.setdefault(found["manager"] if found else "somebody else", []).append(str(cause.get("field", "")))
    return owners


def fields_owned(what: str, owners: Mapping[str, list[str]]) -> FieldsOwned:
    lines = [f"can't {what}: fields of it were set otherwise by another manager"]
    lines += [f"  {manager} owns {', '.join(fields)}" for manager, fields in sorted(owners.items())]
    lines.append(
        "take the fields back with --force-conflicts, or have the other one leave them alone; nothing was changed"
    )
    return FieldsOwned("\n".join(lines), owners)


def may_not(
    what: str, user: str, verb: str, resource: str, *, group: str = "", namespace: str | None = None
) -> NotPermitted:
    name = f"{resource}.{group}" if group else resource
    scope = f"in namespace {namespace}" if namespace else "in the whole cluster"
    check = f"kubectl auth can-i {verb} {name}" + (f" -n {namespace}" if namespace else "")
    return NotPermitted(
        f"can't {what}: {user or 'this login'} may not {verb} {name} {scope}; ask for a role that allows it "
        f"(docs/deploy.md has one), and check with\n  {check}"
    )


def _forbidden(status: Mapping[str, Any], message: str, what: str, namespace: str | None) -> ClusterError:
    causes = status.get("details", {}).get("causes") or ()
    if any(cause.get("reason") == "NamespaceTerminating" for cause in causes):
        return NamespaceMissing(f"can't {what}: the namespace {namespace} is being deleted; wait until it is gone")
    if "exceeded quota" in message:
        return ManifestRefused(f"can't {what}: {message}; raise the quota, or ask for less")
    found = _FORBIDDEN.search(message)
    if found:
        who, verb, resource = found["user"], found["verb"], found["resource"]
        return may_not(what, who, verb, resource, group=found["group"], namespace=found["namespace"])
    return NotPermitted(f"can't {what}: {message or 'the API server forbids it'}")


def _conflict(status: Mapping[str, Any], message: str, what: str) -> ClusterError:
    owners = owners_of(status)
    if owners:
        return fields_owned(what, owners)
    return Changed(f"can't {what}: {message}")


def _causes(status: Mapping[str, Any]) -> str:
    causes = status.get("details", {}).get("causes") or ()
    return "; ".join(f"{cause.get('field')}: {cause.get('message')}" for cause in causes if cause.get("field"))


def _status(body: bytes) -> Mapping[str, Any]:
    try:
        status = json.loads(body)
    except ValueError:
        return {}
    return status if isinstance(status, dict) else {}


def _sentence(message: str, body: bytes) -> str:
    """The message, or what a proxy in between said, cut to one line."""
    text = message or body.decode("utf-8", "replace")
    line = " ".join(text.split())
    return line if len(line) <= 400 else f"{line[:400]}…"


def asked(verb: str, ref: Ref) -> str:
    """What was asked, for the texts above: "apply ConfigMap a in shop"."""
    return f"{verb} {ref}" + (f" in {ref.namespace}" if ref.namespace else "")
