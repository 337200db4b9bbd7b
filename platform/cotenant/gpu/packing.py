"""Best-fit decreasing on identical GPUs: which replicas lie together.

A GPU is never overcommitted, neither in shares nor in bytes, and a node never holds more replicas of a workload
than that workload allows (`Demand.per_node`). Free GPUs are found by a bit mask over their free ticks, not by a
scan, so placing a replica costs about a microsecond however many GPUs there are.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cotenant.gpu.shares import GPU_TICKS


@dataclass(frozen=True)
class Demand:
    """What one replica of a workload books of a GPU, and how many of them one node may hold (None: any number)."""

    workload: str
    ticks: int
    kib: int
    per_node: int | None = None


class Gpus:
    """The GPUs of one pool while they are filled: as many as are needed, up to `limit` (None: no limit).

    GPU number i is on node i // `gpus_per_node`; a node comes with all of its GPUs.
    """

    def __init__(self, kib: int, limit: int | None, gpus_per_node: int = 1) -> None:
        self.kib = kib
        self.limit = limit
        self.gpus_per_node = gpus_per_node
        self.held: list[dict[str, int]] = []
        self.free_ticks: list[int] = []
        self.free_kib: list[int] = []
        self._by_free: defaultdict[int, dict[int, None]] = defaultdict(dict)
        self._mask = 0
        #: Replicas on a node, by (node, workload); only of workloads that say how many it may hold.
        self._on_node: Counter[tuple[int, str]] = Counter()

    def place(self, demand: Demand) -> int | None:
        """Put one replica on the fullest GPU that has room, or on a fresh one. Its index, or None if none has."""
        gpu = self._fullest_with_room(demand)
        if gpu is None:
            if not self._may_grow() or not self.fits_fresh(demand):
                return None
            gpu = self._add_node()
        self._put(gpu, demand, 1)
        return gpu

    def place_all(self, demand: Demand, count: int) -> int:
        """Place `count` replicas, or none of them. How many there was room for."""
        placed: list[int] = []
        for done in range(count):
            gpu = self.place(demand)
            if gpu is None:
                for earlier in reversed(placed):
                    self.remove(earlier, demand)
                return done
            placed.append(gpu)
        return count

    def copy(self) -> Gpus:
        """The same GPUs, to be filled further without changing these."""
        twin = Gpus(self.kib, self.limit, self.gpus_per_node)
        for held, ticks, kib in zip(self.held, self.free_ticks, self.free_kib, strict=True):
            twin._append(dict(held), ticks, kib)
        twin._on_node = self._on_node.copy()
        return twin

    def remove(self, gpu: int, demand: Demand) -> None:
        """Take one replica off a GPU."""
        self._put(gpu, demand, -1)

    def add_filled(self, content: Sequence[tuple[Demand, int]]) -> None:
        """Put `content`, which fits a GPU, on a fresh GPU: of the first node that may hold it, else of a new one."""
        for gpu in self._by_free[GPU_TICKS]:
            if all(self._node_takes(gpu, demand, count) for demand, count in content):
                break
        else:
            gpu = self._add_node()
        for demand, count in content:
            self._put(gpu, demand, count)

    def has_room(self, demand: Demand) -> bool:
        """Whether one more such replica would fit, on a GPU in use or on a further one."""
        return self._fullest_with_room(demand) is not None or (self._may_grow() and self.fits_fresh(demand))

    def fits_fresh(self, demand: Demand) -> bool:
        """Whether an empty GPU holds such a replica."""
        return demand.ticks <= GPU_TICKS and demand.kib <= self.kib

    def free_for(self, demand: Demand) -> list[tuple[int, int]]:
        """Free (ticks, KiB) of each GPU whose node may hold one more of `demand`; a whole one if the pool may grow."""
        free = [(t, k) for i, (t, k) in enumerate(zip(self.free_ticks, self.free_kib, strict=True))
                if self._node_takes(i, demand, 1)]  # fmt: skip
        return [*free, (GPU_TICKS, self.kib)] if self._may_grow() else free

    @property
    def in_use(self) -> int:
        """GPUs with at least one replica on them."""
        return sum(1 for held in self.held if held)

    @property
    def nodes_in_use(self) -> int:
        """Nodes with at least one replica on them."""
        return len({gpu // self.gpus_per_node for gpu, held in enumerate(self.held) if held})

    def _may_grow(self) -> bool:
        return self.limit is None or len(self.held) < self.limit

    def _node_takes(self, gpu: int, demand: Demand, count: int) -> bool:
        if demand.per_node is None:
            return True
        return self._on_node[gpu // self.gpus_per_node, demand.workload] + count <= demand.per_node

    def _fullest_with_room(self, demand: Demand) -> int | None:
        candidates = self._mask >> demand.ticks
        free = demand.ticks
        while candidates:
            step = (candidates & -candidates).bit_length() - 1
            free += step
            for gpu in self._by_free[free]:
                if self.free_kib[gpu] >= demand.kib and self._node_takes(gpu, demand, 1):
                    return gpu
            candidates >>= step + 1
            free += 1
        return None

    def _add_node(self) -> int:
        """Add a node of empty GPUs. The index of its first one."""
        first = len(self.held)
        for _ in range(self.gpus_per_node):
            self._append({}, GPU_TICKS, self.kib)
        return first

    def _append(self, held: dict[str, int], free_ticks: int, free_kib: int) -> None:
        self.held.append(held)
        self.free_ticks.append(free_ticks)
        self.free_kib.append(free_kib)
        self._index(len(self.held) - 1)

    def _put(self, gpu: int, demand: Demand, count: int) -> None:
        """Add `count` replicas to a GPU, or take them off if negative."""
        held = self.held[gpu]
        held[demand.workload] = held.get(demand.workload, 0) + count
        if not held[demand.workload]:
            del held[demand.workload]
        if demand.per_node is not None:
            self._on_node[gpu // self.gpus_per_node, demand.workload] += count
        bucket = self._by_free[self.free_ticks[gpu]]
        del bucket[gpu]
        if not bucket:
            self._mask &= ~(1 << self.free_ticks[gpu])
        self.free_ticks[gpu] -= demand.ticks * count
        self.free_kib[gpu] -= demand.kib * count
        self._index(gpu)

    def _index(self, gpu: int) -> None:
        self._by_free[self.free_ticks[gpu]][gpu] = None
        self._mask |= 1 << self.free_ticks[gpu]


def largest_first(demands: Iterable[Demand]) -> list[Demand]:
    """The demands in the order they are placed in: by share, then bytes, then name."""
    return sorted(demands, key=lambda d: (-d.ticks, -d.kib, d.workload))


def pack(
    demands: Iterable[Demand], counts: Mapping[str, int], kib: int, limit: int | None, gpus_per_node: int = 1
) -> tuple[Gpus, dict[str, int]]:
    """The GPUs that `counts` replicas of each demand take, largest first, and how many of each were left over."""
    gpus = Gpus(kib, limit, gpus_per_node)
    return gpus, grow(gpus, demands, counts)


def grow(gpus: Gpus, demands: Iterable[Demand], counts: Mapping[str, int]) -> dict[str, int]:
    """Place `counts` further replicas on `gpus`, largest first. How many of each workload were left over."""
    left: dict[str, int] = {}
    for demand in largest_first(demands):
        for done in range(counts[demand.workload]):
            if gpus.place(demand) is None:
                left[demand.workload] = counts[demand.workload] - done
                break
    return left
