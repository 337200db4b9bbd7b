"""Between how many and how many pods a worker group may have: as applied, and as the running Ray cluster has it. Pure.

KubeRay takes a change of nothing but these bounds (`minReplicas`, `maxReplicas`) to a Ray cluster that runs only along
with the next change of something else: the hash by which it compares the two leaves them out. Ray's autoscaler would
take them at once. In Ray 2.60 it reads the RayCluster object anew before each round, every five seconds: version 2 by
`refresh_cached_autoscaling_config`, called in `ray.autoscaler.v2.autoscaler` (`update_autoscaling_state`), version 1 by
`reset` of `ray.autoscaler._private.autoscaler`, both through `AutoscalingConfigProducer` of
`ray.autoscaler._private.kuberay.autoscaling_config`. So it is enough to write them there.

Always true: `replicas` is not written. It is the autoscaler's.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cotenant.cluster.json_patch import Operation
from cotenant.cluster.objects import Object
from cotenant.cluster.rayservice import read

#: KubeRay's defaults.
_LEAST, _MOST = 0, 2**31 - 1
_GROUPS = "workerGroupSpecs"
#: Fields of a group that KubeRay leaves out of what it compares. It leaves out tolerations too, but whether the
#: released 1.7.0 does was not seen: a change of them counts as one of the Ray cluster here.
_LEFT_OUT = ("replicas", "minReplicas", "maxReplicas", "scaleStrategy")


@dataclass(frozen=True)
class Bounds:
    """Least and most pods of a worker group."""

    least: int
    most: int


@dataclass(frozen=True)
class Shift:
    """Bounds of one worker group of one Ray cluster that differ from what was applied."""

    cluster: str
    group: str
    before: Bounds
    after: Bounds

    def __str__(self) -> str:
        return f"RayCluster {self.cluster}: group {self.group} " + ", ".join(
            f"{name} {old} -> {new}" for name, old, new in self._differing
        )

    @property
    def as_it_is(self) -> str:
        """For a change that was not made: "group shared has max 2, not 4"."""
        return f"group {self.group} has " + ", ".join(f"{name} {old}, not {new}" for name, old, new in self._differing)

    @property
    def _differing(self) -> list[tuple[str, int, int]]:
        both = (("min", self.before.least, self.after.least), ("max", self.before.most, self.after.most))
        return [each for each in both if each[1] != each[2]]


def bounds_of(config: Mapping[str, Any]) -> dict[str, Bounds]:
    """By worker group, from a RayCluster's spec or a RayService's `rayClusterConfig`."""
    return {
        str(group["groupName"]): Bounds(int(group.get("minReplicas", _LEAST)), int(group.get("maxReplicas", _MOST)))
        for group in config.get(_GROUPS) or ()
        if group.get("groupName")
    }


def wanted_by(service: Mapping[str, Any]) -> dict[str, Bounds]:
    return bounds_of(_config(service))


def shifts(ray_cluster: Mapping[str, Any], wanted: Mapping[str, Bounds]) -> tuple[Shift, ...]:
    """What is to change in `ray_cluster`. A group that only one of the two has is KubeRay's to bring or take."""
    name = str(ray_cluster["metadata"]["name"])
    return tuple(
        Shift(name, group, have, wanted[group])
        for group, have in bounds_of(ray_cluster.get("spec") or {}).items()
        if group in wanted and wanted[group] != have
    )


def operations(ray_cluster: Mapping[str, Any], changes: Sequence[Shift]) -> list[Operation]:
    """The patch for that: none of it is done if the groups have changed places since `ray_cluster` was read."""
    places = {group.get("groupName"): place for place, group in enumerate(ray_cluster["spec"][_GROUPS])}
    found = []
    for each in changes:
        at: tuple[str | int, ...] = ("spec", _GROUPS, places[each.group])
        found.append(Operation("test", (*at, "groupName"), each.group))
        if each.before.least != each.after.least:
            found.append(Operation("replace", (*at, "minReplicas"), each.after.least))
        if each.before.most != each.after.most:
            found.append(Operation("replace", (*at, "maxReplicas"), each.after.most))
    return found


def staying(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """The Ray cluster that a change of the RayService from `before` to `after` leaves in place; empty if none.

    That is the one that KubeRay itself compares with: the pending one if there is one, else the active one. A Ray
    cluster on its way out keeps its bounds: it still serves.
    """
    return "" if _replaced(before, after) else read(after).coming


def _replaced(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether KubeRay answers the change with another Ray cluster, which then has the new bounds from the start."""
    strategy = ((after.get("spec") or {}).get("upgradeStrategy") or {}).get("type")
    return strategy != "None" and _compared(before) != _compared(after)


def _compared(service: Mapping[str, Any]) -> Object:
    config = copy.deepcopy(_config(service))
    for group in config.get(_GROUPS) or ():
        for field in _LEFT_OUT:
            group.pop(field, None)
    return config


def _config(service: Mapping[str, Any]) -> Object:
    return (service.get("spec") or {}).get("rayClusterConfig") or {}
