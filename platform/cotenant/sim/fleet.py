"""The simulated nodes and the replicas on them: who is where, who starts, who drains, what it costs.

Nodes carry what fits by shares; a new replica goes to the fullest node that has room, a new node is made if none has.
What is not needed any more goes from the emptiest node first, so that the node can go.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from enum import Enum

from cotenant.sim.backlog import Call
from cotenant.sim.model import SimPool, SimWorkload
from cotenant.sim.stages import DEFAULTS

_ROUNDING = 1e-9


class State(Enum):
    STARTING = "starting"
    RESIDENT = "resident"
    ASLEEP = "asleep"
    WAKING = "waking"
    DRAINING = "draining"
    GONE = "gone"


@dataclass(eq=False)
class Node:
    """One node. `ready_s` is when it is, or was, there."""

    number: int
    pool: int
    paid: int
    """The pool that it was taken from: its own, or that one's fallback."""
    made_s: float
    ready_s: float
    free: float = 1.0
    replicas: list[Replica] = field(default_factory=list)
    empty_since_s: float = 0.0
    gone: bool = False


@dataclass(eq=False)
class Replica:
    number: int
    workload: int
    node: Node
    state: State
    ready_s: float
    began_s: float
    own_s: float
    """What its start takes once its node is there."""
    busy: int = 0
    listed: bool = False
    """Whether it is among those that have a free slot."""
    calls: dict[int, Call] = field(default_factory=dict)
    """What it works on, by number."""


@dataclass
class Spent:
    """What was paid for, by pool and by workload."""

    node_s: list[float]
    replica_s: list[float]
    """Of a share, from the start of the start to the end."""
    starts: list[int]
    wakes: list[int]
    nodes_made: int = 0
    nodes_lost: int = 0


class Fleet:
    """Nodes and replicas."""

    def __init__(self, pools: tuple[SimPool, ...], workloads: tuple[SimWorkload, ...], seed: int) -> None:
        self._pools = pools
        self._workloads = workloads
        self._seed = seed
        self._drawn: dict[str, int] = {}
        self._numbers = 0
        self._paid = [0] * len(pools)
        self._dry_until_s = [0.0] * len(pools)
        self._freed: set[int] = set()
        """Pools in which there may be room that was not there before."""
        self.nodes: list[list[Node]] = [[] for _ in pools]
        self.replicas: list[list[Replica]] = [[] for _ in workloads]
        """Those that are not gone and do not drain."""
        self.spent = Spent([0.0] * len(pools), [0.0] * len(workloads), [0] * len(workloads), [0] * len(workloads))

    # --- nodes ---

    def make_node(self, pool: int, now: float, *, ready: bool = False) -> Node | None:
        """A new node, if the pool, or the one that it falls back on, may have another."""
        paid = self._to_be_had(pool, now)
        if paid is None:
            return None
        stages = next((one.stages for one in self._workloads if one.pool == pool), DEFAULTS)
        delay_s = 0.0 if ready else stages.node_s(self._chance(f"node {pool}"), self._pools[pool].image)
        node = Node(self._number(), pool, paid, now, now + delay_s, empty_since_s=now + delay_s)
        self.nodes[pool].append(node)
        self._paid[paid] += 1
        self.spent.nodes_made += 1
        return node

    def _to_be_had(self, pool: int, now: float) -> int | None:
        """Where the pool's next node comes from."""
        for source in (pool, self._pools[pool].fallback):
            if source is None:
                continue
            if now >= self._dry_until_s[source] and self._paid[source] < self._pools[source].max_nodes:
                return source
        return None

    def lasts_s(self, node: Node) -> float | None:
        """How long the node runs until it is taken away; None if it never is."""
        rate = self._pools[node.paid].losses_per_h
        return self._chance(f"loss {node.paid}").expovariate(rate / 3600) if rate > 0 else None

    def lose(self, node: Node, now: float) -> list[Replica]:
        """The node is taken away; the replicas that go with it."""
        self.spent.nodes_lost += 1
        self._dry_until_s[node.paid] = now + self._pools[node.paid].dry_s
        return self.remove_node(node, now)

    def keep_nodes(self, pool: int, now: float, *, ready: bool = False) -> list[Node]:
        """Make the nodes that are to be there, let go of those that have idled long enough. Returns the new ones."""
        spec, nodes = self._pools[pool], self.nodes[pool]
        made: list[Node] = []
        empty = [node for node in nodes if not node.replicas]
        short = max(spec.min_nodes - len(nodes), spec.spare_nodes - len(empty))
        for _ in range(short):
            node = self.make_node(pool, now, ready=ready)
            if node is not None:
                made.append(node)
        self._freed.add(pool)
        surplus = min(len(empty) - spec.spare_nodes, len(nodes) - spec.min_nodes)
        if surplus > 0:
            idle = sorted(
                (n for n in empty if now - n.empty_since_s >= spec.idle_s),
                key=lambda n: (n.paid == pool, n.empty_since_s),
            )
            for node in idle[:surplus]:
                self.remove_node(node, now)
        return made

    def remove_node(self, node: Node, now: float) -> list[Replica]:
        """The node goes; the replicas that go with it."""
        node.gone = True
        self.nodes[node.pool].remove(node)
        self._paid[node.paid] -= 1
        self.spent.node_s[node.paid] += now - node.made_s
        lost = list(node.replicas)
        for replica in lost:
            self.remove(replica, now)
        return lost

    # --- replicas ---

    def free_shares(self, workload: int) -> int:
        """Replicas of it that fit on the nodes that are there."""
        spec = self._workloads[workload]
        return sum(int((node.free + _ROUNDING) / spec.share) for node in self.nodes[spec.pool])

    def start(self, workload: int, now: float, *, ready: bool = False) -> tuple[Replica, Node | None] | None:
        """A new replica, and the node that was made for it; None where there is no room for either."""
        spec = self._workloads[workload]
        fitting = [node for node in self.nodes[spec.pool] if node.free + _ROUNDING >= spec.share]
        made = None
        if fitting:
            node = min(fitting, key=lambda one: (one.ready_s > now, one.free, one.number))
        else:
            made = self.make_node(spec.pool, now, ready=ready)
            if made is None:
                return None
            node = made
        own_s = 0.0 if ready else spec.stages.share_s(self._chance(f"start {workload}"))
        state = State.RESIDENT if ready else State.STARTING
        replica = Replica(self._number(), workload, node, state, max(now, node.ready_s) + own_s, now, own_s)
        self._put(replica, node)
        self.replicas[workload].append(replica)
        self.spent.starts[workload] += 1
        return replica, made

    def settle(self, now: float) -> list[Replica]:
        """Replicas that wait for their node and found room on one that is there: they serve sooner now.

        As Ray does it: what is not placed yet is placed wherever there is room first.
        """
        moved: list[Replica] = []
        for pool in sorted(self._freed):
            waiting = [
                replica for node in self.nodes[pool] if node.ready_s > now for replica in node.replicas
                if replica.state is State.STARTING
            ]  # fmt: skip
            for replica in sorted(waiting, key=lambda one: one.number):
                share = self._workloads[replica.workload].share
                there = [one for one in self.nodes[pool] if one.ready_s <= now and one.free + _ROUNDING >= share]
                if there:
                    self._take_off(replica, now)
                    replica.node = min(there, key=lambda one: (one.free, one.number))
                    self._put(replica, replica.node)
                    replica.ready_s = now + replica.own_s
                    moved.append(replica)
        self._freed.clear()
        return moved

    def wake(self, replica: Replica, now: float) -> None:
        replica.state = State.WAKING
        replica.ready_s = now + self._workloads[replica.workload].stages.wake_s(
            self._chance(f"wake {replica.workload}")
        )
        self.spent.wakes[replica.workload] += 1

    def drain(self, replica: Replica) -> None:
        """It takes nothing new; it goes when what it works on is done."""
        replica.state = State.DRAINING
        self.replicas[replica.workload].remove(replica)

    def remove(self, replica: Replica, now: float) -> None:
        """It is gone, and its share is free."""
        if replica.state is not State.DRAINING:
            self.replicas[replica.workload].remove(replica)
        replica.state = State.GONE
        self._take_off(replica, now)
        self._freed.add(replica.node.pool)
        self.spent.replica_s[replica.workload] += now - replica.began_s

    def _put(self, replica: Replica, node: Node) -> None:
        node.free -= self._workloads[replica.workload].share
        node.replicas.append(replica)

    def _take_off(self, replica: Replica, now: float) -> None:
        node = replica.node
        node.free += self._workloads[replica.workload].share
        node.replicas.remove(replica)
        if not node.replicas:
            # A node that is still coming can't be called off: it comes, and idles.
            node.free, node.empty_since_s = 1.0, max(now, node.ready_s)

    def emptiest_first(self, replica: Replica) -> tuple[int, int, int]:
        """In which order replicas are given up."""
        return (replica.busy > 0, len(replica.node.replicas), -replica.number)

    def node_s(self, pool: int, now: float) -> float:
        """Paid for until now."""
        there = (node for nodes in self.nodes for node in nodes if node.paid == pool)
        return self.spent.node_s[pool] + sum(now - node.made_s for node in there)

    def close(self, now: float) -> None:
        """Count what is still there."""
        for nodes in self.nodes:
            for node in nodes:
                self.spent.node_s[node.paid] += now - node.made_s
                for replica in node.replicas:
                    self.spent.replica_s[replica.workload] += now - replica.began_s

    def _chance(self, what: str) -> random.Random:
        """Chance for the next of its kind: the n-th start takes as long whatever else happens, so runs compare."""
        drawn = self._drawn[what] = self._drawn.get(what, 0) + 1
        return random.Random(f"{self._seed} {what} {drawn}")

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers
