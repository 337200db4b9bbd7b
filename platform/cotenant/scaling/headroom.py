"""How many nodes of a pool there should be, and how that is put to Ray's autoscaler. Pure.

The autoscaler makes a node when a replica already waits for one. Headroom is what has to be there before: the file's
`spare` beyond the nodes in use, and the nodes that are forecast to be used by the time a new one could serve.

Ray is asked with `request_resources`, which states what the cluster should be able to hold, used or not: as many
bundles as there should be nodes, each as large as a node. Read in Ray 2.60's autoscalers:

- What is asked for is matched against whole nodes, whatever runs on them, and a node that was matched is not ended for
  being idle. The first generation matches the nodes that were used last; the second takes nodes in any order, so idle
  nodes could be kept in place of used ones. There only the nodes beyond those in use are asked for, by a label that
  the nodes in use don't have (`apart`).
- In the second generation one bundle that can't be had voids all of them, so nothing is ever asked past a pool's max.

What always holds of the nodes wanted: they are within the pool's bounds, at least as many as are in use (up to max),
and more in use, more spare or a higher forecast never gives fewer. What a forecast asked for is kept for a while.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

#: Ray's own label of a node.
NODE_LABEL = "ray.io/node-id"
#: What a forecast asked for is kept for so long after it asked for less.
KEEP_S = 600.0
#: Ray counts resources in ten-thousandths.
_GRAIN = 1e-4

Resources = Mapping[str, float]


@dataclass(frozen=True)
class PoolTerms:
    """What the platform file says of a pool's nodes."""

    name: str
    min: int
    max: int
    spare: int
    marker: str
    """A resource that only nodes of this pool offer and of which everything on them takes some."""
    resources: Resources
    """What a node offers at least: the marker, and its GPUs if it has some."""

    @classmethod
    def from_plain(cls, plain: Mapping[str, object]) -> PoolTerms:
        """From one of `manifests.nodes.headroom_terms`. Raises TypeError for keys that are unknown or missing."""
        return cls(**plain)  # type: ignore[arg-type]

    def clamp(self, nodes: int) -> int:
        return max(self.min, min(self.max, nodes))


@dataclass(frozen=True)
class NodeView:
    """A node as Ray tells of it."""

    id: str
    total: Resources
    free: Resources
    draining: bool = False
    """It takes nothing new, and is about to go."""


@dataclass(frozen=True)
class Use:
    """A pool's nodes by what is on them."""

    busy: frozenset[str] = frozenset()
    """Nodes that hold something, or have room for what waits."""
    idle: frozenset[str] = frozenset()
    draining: frozenset[str] = frozenset()
    missing: int = 0
    """Nodes to be made for what waits."""

    @property
    def need(self) -> int:
        """Nodes that are in use, or will be as soon as they are there."""
        return len(self.busy) + self.missing


def use_of(pool: PoolTerms, nodes: Iterable[NodeView], waiting: Iterable[Resources]) -> Use:
    """Sort a pool's nodes, and lay what waits for a place on them: first where something is, then on idle nodes.

    Args:
        nodes: of any pool.
        waiting: what each thing asks for that Ray has not placed; what asks for no place in this pool is left out.
    """
    ours = [node for node in nodes if node.total.get(pool.marker, 0) > 0]
    there = [node for node in ours if not node.draining]
    busy = {n.id: dict(n.free) for n in there if n.free.get(pool.marker, 0) < n.total[pool.marker] - _GRAIN}
    idle = {node.id: dict(node.free) for node in there if node.id not in busy}
    made: list[dict[str, float]] = []
    asks = [ask for ask in waiting if ask.get(pool.marker, 0) > 0]
    for ask in sorted(asks, key=lambda ask: ask.get("GPU", 0), reverse=True):
        if any(_place(free, ask) for free in busy.values()):
            continue
        found = next((name for name, free in sorted(idle.items()) if _place(free, ask)), None)
        if found is not None:
            busy[found] = idle.pop(found)
            continue
        # Of a node that is not there yet not all is known: what it is not known to offer counts as enough.
        if not any(_place(free, ask, unknown=True) for free in made):
            made.append(dict(pool.resources))
            _place(made[-1], ask, unknown=True)
    leaving = frozenset(node.id for node in ours if node.draining)
    return Use(frozenset(busy), frozenset(idle), leaving, len(made))


def _place(free: dict[str, float], ask: Resources, *, unknown: bool = False) -> bool:
    """Take `ask` from `free`, if it fits."""
    for name, amount in ask.items():
        if amount > free.get(name, amount if unknown else 0.0) + _GRAIN:
            return False
    for name, amount in ask.items():
        if name in free:
            free[name] -= amount
    return True


@dataclass(frozen=True)
class Kept:
    """What a decision leaves to the next one."""

    forecast_at_s: tuple[float, ...] = ()
    """When so many nodes were last forecast: the first entry for one, the second for two. Never rises."""


def nodes_wanted(pool: PoolTerms, need: int, forecast: int) -> int:
    """Nodes that there should be: those needed now or by forecast, and the spare ones beside them, within bounds."""
    return pool.clamp(max(need, forecast) + pool.spare)


def decide(
    pool: PoolTerms, need: int, forecast: int, kept: Kept, *, now: float, keep_s: float = KEEP_S
) -> tuple[int, Kept]:
    """The nodes wanted, and what to hand in with the next decision.

    Args:
        need: `Use.need`.
        forecast: nodes that will be needed, as far as can be told; 0 if nothing can.
        now: seconds, on any clock that does not go back.
        keep_s: what was forecast is kept for so long.
    """
    forecast = max(0, min(forecast, pool.max))
    at = (now,) * forecast + kept.forecast_at_s[forecast:]
    held = sum(1 for then in at if now - then <= keep_s)
    return nodes_wanted(pool, need, held), Kept(at[:held])


@dataclass(frozen=True)
class Ask:
    """What `request_resources` is called with. Order does not matter, so equal asks compare equal."""

    bundles: tuple[Resources, ...] = ()
    selectors: tuple[Mapping[str, str], ...] = ()
    """For each bundle the labels that a node for it must have."""


def ask_for(wanted: Iterable[tuple[PoolTerms, Use, int]], *, apart: bool) -> Ask:
    """The bundles that hold so many nodes of each pool; none for a pool that wants no more than are needed anyway.

    Args:
        wanted: pools, their nodes, and how many there should be.
        apart: ask only for the nodes beyond those in use, which must not count for them. For the second generation of
            autoscalers; the first does not know labels.
    """
    bundles: list[Resources] = []
    selectors: list[Mapping[str, str]] = []
    for pool, use, nodes in wanted:
        if nodes <= use.need:
            continue
        count = nodes - len(use.busy) if apart else nodes
        others = {NODE_LABEL: f"!in({','.join(sorted(use.busy))})"} if apart and use.busy else {}
        bundles += [dict(pool.resources)] * count
        selectors += [others] * count
    return Ask(tuple(bundles), tuple(selectors))
