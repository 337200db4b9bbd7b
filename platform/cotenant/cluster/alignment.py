"""Bounds of worker groups taken to the Ray cluster that runs, since KubeRay does not (`bounds` tells why).

Always true: no other field is written, a Ray cluster that is to be replaced is left as it is, and what could not be
done is a note: a deploy does not fail for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cotenant.cluster.bounds import Shift, operations, shifts, staying, wanted_by
from cotenant.cluster.edge import Cluster
from cotenant.cluster.objects import RAY_CLUSTER, Ref, ref_of
from cotenant.cluster.rayservice import read
from cotenant.errors import Changed, ClusterBusy, ClusterError, NotConnected, NotPermitted

#: How often it is read and tried again when others wrote in between.
ATTEMPTS = 5


@dataclass(frozen=True)
class Alignment:
    """Bounds that were changed (or would be), and what could not be."""

    shifts: tuple[Shift, ...] = ()
    notes: tuple[str, ...] = ()


def ahead(cluster: Cluster, live: Mapping[str, Any], after: Mapping[str, Any]) -> Alignment:
    """What is to be passed on once the RayService is `after`. Tried with a dry run; nothing changes.

    Raises ClusterBusy, NotConnected.
    """
    name = staying(live, after)
    if not name:
        return Alignment()
    found = align(cluster, name, after, dry_run=True)
    if found.shifts and not read(live).taken_up:
        why = (
            "KubeRay has not taken up the change before and may yet replace it; looked at again once all is healthy, "
            "with --no-wait by the next deploy"
        )
        return Alignment(notes=(_left(name, found.shifts, why),))
    return found


def pass_on(cluster: Cluster, proposed: tuple[Shift, ...], service: Mapping[str, Any]) -> Alignment:
    """What was proposed, now that `service` is applied. A note alone, if KubeRay has turned to another one since."""
    if not proposed:
        return Alignment()
    name = read(service).coming
    if any(each.cluster == name for each in proposed):
        return align(cluster, name, service)
    why = "KubeRay has turned to another since, whose bounds are looked at by the next deploy"
    return Alignment(notes=(_left(proposed[0].cluster, proposed, why),))


def settle(cluster: Cluster, service: Mapping[str, Any]) -> Alignment:
    """What is left when everything has come up, as after an upgrade that went back to a Ray cluster from before."""
    try:
        live = cluster.get(ref_of(service))
    except ClusterError as error:
        return Alignment(notes=(f"whether the Ray cluster has the bounds that were applied was not seen: {error}",))
    state = read(live or {})
    if live is None or state.pending or not state.active or not state.taken_up:
        return Alignment()
    return align(cluster, state.active, live)


def align(cluster: Cluster, name: str, service: Mapping[str, Any], *, dry_run: bool = False) -> Alignment:
    """Bring the Ray cluster `name` to the bounds that `service` has.

    Raises ClusterBusy, NotConnected: with `dry_run` only. Afterwards that is a note as well, because everything else
    is done.
    """
    ref = Ref(RAY_CLUSTER, name, service["metadata"]["namespace"])
    wanted = wanted_by(service)
    found: tuple[Shift, ...] = ()
    met: Changed | None = None
    try:
        for _ in range(ATTEMPTS):
            live = cluster.get(ref)
            found = shifts(live, wanted) if live is not None else ()
            if live is None or not found:
                return Alignment()
            try:
                there = cluster.edit(ref, operations(live, found), dry_run=dry_run)
            except Changed as error:
                met = error
                continue
            return Alignment(found) if there is not None else Alignment()
        return Alignment(notes=(_left(name, found, f"{met}, {ATTEMPTS} times; deploy again"),))
    except ClusterError as error:
        if dry_run and isinstance(error, ClusterBusy | NotConnected):
            raise
        return Alignment(notes=(_left(name, found, str(error)),))


def differing(cluster: Cluster, service: Mapping[str, Any]) -> tuple[str, ...]:
    """For whoever only looks: what the Ray cluster has otherwise than was applied. Raises ClusterError."""
    state = read(service)
    if not state.coming or not state.taken_up:
        return ()
    try:
        live = cluster.get(Ref(RAY_CLUSTER, state.coming, state.namespace))
    except NotPermitted as error:
        return (f"whether RayCluster {state.coming} has the bounds that were applied is not seen: {_first(error)}",)
    found = shifts(live, wanted_by(service)) if live is not None else ()
    return (_left(state.coming, found, "cotenant deploy passes it on"),) if found else ()


def _left(name: str, found: tuple[Shift, ...], why: str) -> str:
    if not found:
        return f"bounds of worker groups were not passed on to RayCluster {name}: {why}"
    return f"RayCluster {name} stays otherwise than applied, {'; '.join(each.as_it_is for each in found)}: {why}"


def _first(error: Exception) -> str:
    return str(error).splitlines()[0]
