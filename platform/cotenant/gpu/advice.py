"""Changes to a platform that does not fit, each of which alone would do. Every one was tried before it is named.

A change is tried on the whole platform, in every order in which the plan assigns workloads, so whoever follows the
advice has a plan: where several workloads have no room, one in which the others are left out. Numbers are
found by halving, so they are the best of those tried, which is nearly always the best there is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic import Field

from cotenant.config import Nodes, Platform, Workload
from cotenant.gpu.residency import floor_gib

if TYPE_CHECKING:
    from cotenant.gpu.assignment import PoolState

#: Nodes a pool may have at the most.
_MOST_NODES = 10_000
#: A budget under this part of what the file says is no advice: the workload would be another.
_LEAST_PART = 0.25

#: Assigns a platform's workloads. None if some have no room.
Assign = Callable[[Platform], "Mapping[str, PoolState] | None"]


class Supposed(Workload):
    """A workload that stands in no file, so that only its budget can be changed. `source` is how it was given."""

    source: str = Field(min_length=1)


@dataclass(frozen=True)
class Trials:
    """What is tried: changes of one workload, or of one pool, of a platform that has no room for that workload."""

    platform: Platform
    name: str
    assign: Assign

    @property
    def workload(self) -> Workload:
        return self.platform.workloads[self.name]

    def with_workload(self, **update: Any) -> bool:
        """Whether the platform fits with the workload changed."""
        return self.with_workloads({self.name: update})

    def with_workloads(self, updates: Mapping[str, Mapping[str, Any]]) -> bool:
        """Whether the platform fits with those workloads changed."""
        workloads = dict(self.platform.workloads)
        for name, update in updates.items():
            workloads[name] = workloads[name].model_copy(update=update)
        return self.assign(self.platform.model_copy(update={"workloads": workloads})) is not None

    def with_nodes(self, pool: str, most: int) -> Mapping[str, PoolState] | None:
        """The pools, if the platform fits with up to `most` nodes in that one."""
        its = self.platform.pools[pool]
        changed = its.model_copy(update={"nodes": Nodes(min=its.nodes.min, max=most)})
        return self.assign(self.platform.model_copy(update={"pools": {**self.platform.pools, pool: changed}}))

    def with_gib(self, gib: float) -> bool:
        """Whether the platform fits with such a budget of the workload."""
        return self.with_workload(gpu=self.workload.gpu.model_copy(update={"vram_gib": gib}))


def changes(trials: Trials, state: PoolState, waking: str | None) -> list[str]:
    """Changes that would give a workload's minimum its room, in that pool.

    `waking` is the workload whose wake-up room is what lacks, if that is so.
    """
    return list(_changes(trials, state, waking))


def largest_gib(trials: Trials, most: float) -> float | None:
    """The largest budget up to `most`, or else in tenths of a GiB, with which the platform fits.

    None if that is another workload, for it is under a quarter of what it was, or under what it holds asleep.
    """
    gpu = trials.workload.gpu
    least = max(gpu.gib * _LEAST_PART, gpu.asleep_gib or 0.0)
    if least <= most < gpu.gib and trials.with_gib(most):
        return most
    tenths = _highest(-int(-least * 10 // 1), int(most * 10 - 1e-6), lambda count: trials.with_gib(count / 10))
    return None if tenths is None else tenths / 10


def _changes(trials: Trials, state: PoolState, waking: str | None) -> Iterator[str]:
    name, workload = trials.name, trials.workload
    if waking is not None:
        yield from _less_to_wake(trials, state, waking)
    nodes = _fewest_nodes(trials, state)
    if nodes is not None:
        yield f"raise nodes.max of pool {state.name} from {state.pool.nodes.max} to {nodes}"
    smaller = largest_gib(trials, workload.gpu.gib)
    if smaller is not None:
        yield f"lower vram_gib of {name} to {smaller:g}"
    if isinstance(workload, Supposed):
        return
    if workload.residency == "always":
        floor = floor_gib(workload.model_copy(update={"residency": "sleep"}), state.accelerator)
        if floor < workload.gpu.gib and trials.with_workload(residency="sleep"):
            yield f"give {name} residency: sleep (it then books {floor:g} GiB, {workload.gpu.gib - floor:g} less)"
    fewer = _highest(1, workload.replicas.min - 1, lambda count: _with_least(trials, count))
    if fewer is not None:
        yield f"lower replicas.min of {name} to {fewer}"


def _less_to_wake(trials: Trials, state: PoolState, waking: str) -> Iterator[str]:
    """Changes that leave less wake-up room to be kept free in a pool, where `waking` needs most of it."""
    members = {**state.members, trials.name: trials.workload}
    sleepers = [name for name, its in members.items() if state.need(its).wake_kib]
    for names in dict.fromkeys([(waking,), tuple(sleepers)]):
        if trials.with_workloads({name: {"residency": "always"} for name in names}):
            yield f"drop residency of {' and '.join(names)}"
            break
    if waking != trials.name:
        smaller = largest_gib(replace(trials, name=waking), members[waking].gpu.gib)
        if smaller is not None:
            yield f"lower vram_gib of {waking} to {smaller:g}"


def _with_least(trials: Trials, count: int) -> bool:
    return trials.with_workload(replicas=trials.workload.replicas.model_copy(update={"min": count}))


def _fewest_nodes(trials: Trials, state: PoolState) -> int | None:
    """Nodes of a pool with which the platform fits; None if no number of them does."""
    now = state.pool.nodes.max
    grown = trials.with_nodes(state.name, _MOST_NODES)
    if grown is None or now >= _MOST_NODES:
        return None
    used = max(now + 1, grown[state.name].gpus.nodes_in_use)
    upper = used if trials.with_nodes(state.name, used) is not None else _MOST_NODES
    fewer = _highest(-(upper - 1), -(now + 1), lambda count: trials.with_nodes(state.name, -count) is not None)
    return upper if fewer is None else -fewer


def _highest(low: int, high: int, fits: Callable[[int], bool]) -> int | None:
    """The highest number from `low` to `high` that fits, found by halving as if all below it did; None if none."""
    found: int | None = None
    while low <= high:
        middle = (low + high + 1) // 2
        if fits(middle):
            found, low = middle, middle + 1
        else:
            high = middle - 1
    return found


def either(found: Sequence[str]) -> str:
    """The changes as a choice. There is at least one."""
    return found[0] if len(found) == 1 else ", ".join(found[:-1]) + f", or {found[-1]}"
