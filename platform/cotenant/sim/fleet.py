"""The simulated nodes and the replicas on them: who is where, who starts, who drains, what it costs.

Nodes carry what fits by shares; a new replica goes to the fullest node that has room, a new node is made if none has.
What is not needed any more goes from the emptiest node first, so that the node can go.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from enum import Enum

from cotenant.sim.model import SimPool, SimWorkload

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
    busy: int = 0
    listed: bool = False
    """Whether it is among those that have a free slot."""
    calls: dict[int, tuple[float, float]] = field(default_factory=dict)
    """What it works on, by number: when each came, and how long it takes."""


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

    def __init__(self, pools: tuple[SimPool, ...], workloads: tuple[SimWorkload, ...], rng: random.Random) -> None:
        self._pools = pools
        self._workloads = workloads
        self._rng = rng
        self._numbers = 0
        self.nodes: list[list[Node]] = [[] for _ in pools]
        self.replicas: list[list[Replica]] = [[] for _ in workloads]
        """Those that are not gone and do not drain."""
        self.spent = Spent([0.0] * len(pools), [0.0] * len(workloads), [0] * len(workloads), [0] * len(workloads))

    # --- nodes ---

    def make_node(self, pool: int, now: float, *, ready: bool = False) -> Node | None:
        """A new node, if the pool may have another."""
        spec = self._pools[pool]
        if len(self.nodes[pool]) >= spec.max_nodes:
            return None
        stages = next(one.stages for one in self._workloads if one.pool == pool)
        delay_s = 0.0 if ready else stages.node_s(self._rng, spec.image)
        node = Node(self._number(), pool, now, now + delay_s, empty_since_s=now + delay_s)
        self.nodes[pool].append(node)
        self.spent.nodes_made += 1
        return node

    def keep_nodes(self, pool: int, now: float) -> list[Node]:
        """Make the nodes that are to be there, let go of those that have idled long enough. Returns the new ones."""
        spec, nodes = self._pools[pool], self.nodes[pool]
        made: list[Node] = []
        empty = [node for node in nodes if not node.replicas]
        short = max(spec.min_nodes - len(nodes), spec.spare_nodes - len(empty))
        for _ in range(short):
            node = self.make_node(pool, now)
            if node is not None:
                made.append(node)
        surplus = min(len(empty) - spec.spare_nodes, len(nodes) - spec.min_nodes)
        if surplus > 0:
            idle = sorted((n for n in empty if now - n.empty_since_s >= spec.idle_s), key=lambda n: n.empty_since_s)
            for node in idle[:surplus]:
                self.remove_node(node, now)
        return made

    def remove_node(self, node: Node, now: float) -> list[Replica]:
        """The node goes; the replicas that go with it."""
        node.gone = True
        self.nodes[node.pool].remove(node)
        self.spent.node_s[node.pool] += now - node.made_s
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
        delay_s = 0.0 if ready else max(0.0, node.ready_s - now) + spec.stages.share_s(self._rng)
        state = State.RESIDENT if ready else State.STARTING
        replica = Replica(self._number(), workload, node, state, now + delay_s, now)
        node.free -= spec.share
        node.replicas.append(replica)
        self.replicas[workload].append(replica)
        self.spent.starts[workload] += 1
        return replica, made

    def wake(self, replica: Replica, now: float) -> None:
        replica.state = State.WAKING
        replica.ready_s = now + self._workloads[replica.workload].stages.wake_s(self._rng)
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
        node = replica.node
        node.free += self._workloads[replica.workload].share
        node.replicas.remove(replica)
        if not node.replicas:
            node.free, node.empty_since_s = 1.0, now
        self.spent.replica_s[replica.workload] += now - replica.began_s

    def emptiest_first(self, replica: Replica) -> tuple[int, int, int]:
        """In which order replicas are given up."""
        return (replica.busy > 0, len(replica.node.replicas), -replica.number)

    def node_s(self, pool: int, now: float) -> float:
        """Paid for until now."""
        return self.spent.node_s[pool] + sum(now - node.made_s for node in self.nodes[pool])

    def close(self, now: float) -> None:
        """Count what is still there."""
        for nodes in self.nodes:
            for node in nodes:
                self.spent.node_s[node.pool] += now - node.made_s
                for replica in node.replicas:
                    self.spent.replica_s[replica.workload] += now - replica.began_s

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers
