"""In which order objects are applied, and which are taken away because nothing renders them any more. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from cotenant.cluster.objects import NAMESPACE, RAY_SERVICE, Kind, Object, Ref, has_labels, labels_of, ref_of

#: What others need comes first. Kinds that are not named come after the named ones, a RayService last of all: when it
#: is taken up, everything that its pods name is there.
_FIRST = (
    "Namespace",
    "PriorityClass",
    "ServiceAccount",
    "Role",
    "ClusterRole",
    "RoleBinding",
    "ClusterRoleBinding",
    "ResourceQuota",
    "LimitRange",
    "Secret",
    "ConfigMap",
    "PersistentVolumeClaim",
    "NetworkPolicy",
    "Service",
    "PodDisruptionBudget",
    "StatefulSet",
    "Deployment",
)
_LAST = (RAY_SERVICE.name,)

#: Label of a revision's ConfigMap: it is kept by `history`, not by what is rendered.
REVISION = "cotenant-revision"

#: Never deleted because it is not rendered any more: it may hold data, or everything else.
KEPT = frozenset({"Namespace", "PersistentVolumeClaim", "Secret", "CustomResourceDefinition"})

#: Kinds in which an environment is looked for, besides those rendered now. Cluster-wide ones carry no namespace.
SEARCHED = (
    RAY_SERVICE,
    Kind("v1", "ConfigMap"),
    Kind("v1", "PodTemplate"),
    Kind("v1", "Service"),
    Kind("v1", "ServiceAccount"),
    Kind("apps/v1", "Deployment"),
    Kind("apps/v1", "StatefulSet"),
    Kind("autoscaling/v2", "HorizontalPodAutoscaler"),
    Kind("networking.k8s.io/v1", "Ingress"),
    Kind("networking.k8s.io/v1", "NetworkPolicy"),
    Kind("policy/v1", "PodDisruptionBudget"),
    Kind("scheduling.k8s.io/v1", "PriorityClass"),
    Kind("autoscaling.x-k8s.io/v1beta1", "CapacityBuffer"),
    Kind("cloud.google.com/v1", "ComputeClass"),
    Kind("gateway.networking.k8s.io/v1", "Gateway"),
    Kind("gateway.networking.k8s.io/v1", "HTTPRoute"),
    Kind("keda.sh/v1alpha1", "ScaledObject"),
    Kind("monitoring.googleapis.com/v1", "PodMonitoring"),
    Kind("networking.gke.io/v1", "GCPBackendPolicy"),
    Kind("networking.gke.io/v1", "HealthCheckPolicy"),
)


def in_order(things: Iterable[Mapping[str, object]]) -> list[Mapping[str, object]]:
    """As they are to be applied; by kind, then as they came."""
    return sorted(things, key=_place)


def _place(thing: Mapping[str, object]) -> tuple[int, int]:
    name = str(thing["kind"])
    if name in _LAST:
        return (2, _LAST.index(name))
    return (0, _FIRST.index(name)) if name in _FIRST else (1, 0)


def kinds_to_search(things: Iterable[Mapping[str, object]]) -> tuple[Kind, ...]:
    """Kinds in which something of the environment may be left over."""
    rendered = [ref_of(thing).kind for thing in things]
    return tuple(dict.fromkeys(kind for kind in (*rendered, *SEARCHED) if kind.name not in KEPT))


def left_over(
    found: Iterable[Object], rendered: Iterable[Mapping[str, object]], labels: Mapping[str, str]
) -> list[Ref]:
    """What carries `labels` and is not rendered any more, in the order in which it is deleted.

    What a controller made of one of our objects (it has an owner) goes with that, and is not named.
    """
    wanted = {_same(ref_of(thing)) for thing in rendered}
    gone = [
        thing
        for thing in found
        if has_labels(thing, labels)
        and _same(ref_of(thing)) not in wanted
        and thing["kind"] not in KEPT
        and REVISION not in labels_of(thing)
        and not thing["metadata"].get("ownerReferences")
    ]
    return [ref_of(thing) for thing in reversed(in_order(gone))]


def _same(ref: Ref) -> tuple[str, str, str, str]:
    """One object has one name, whatever version of its API names it."""
    return (ref.kind.group, ref.kind.name, ref.namespace or "", ref.name)


def namespaces_of(things: Sequence[Mapping[str, object]]) -> frozenset[str]:
    """Namespaces that `things` themselves make."""
    return frozenset(ref_of(thing).name for thing in things if ref_of(thing).kind == NAMESPACE)
