"""Small records beside the results: jobs submitted by themselves, and what each ingress is at.

None of it decides about a job: a result is decided by the result object alone. A job's record makes it findable by
its id, its place in the queue's listing makes its position countable, and a board (one per ingress, replaced as it
changes) says what runs now and how fast it goes, to whoever can read the store.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from cotenant.errors import JobError
from cotenant.jobs.model import Identity, Wishes
from cotenant.jobs.store import keys
from cotenant.jobs.store.objects import Objects

#: A board that was not renewed for so long is a dead ingress's.
BOARD_STALE_S = 15.0


@dataclass(frozen=True)
class JobRecord:
    """A job that was submitted by itself; times are Unix time.

    `request_sha256` is the hash of the whole request, by which a repeated one is told from another.
    """

    identity: Identity
    url: str
    workload: str
    created_at_s: float
    sha256: str
    wishes: Wishes = field(default_factory=Wishes)
    metadata: Mapping[str, str] | None = None
    request_sha256: str = ""

    def dump(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def load(cls, data: bytes) -> JobRecord:
        """The opposite of `dump`. Raises JobError."""
        try:
            raw: dict[str, Any] = json.loads(data)
            return cls(**{**raw, "identity": Identity(**raw["identity"]), "wishes": Wishes(**raw["wishes"])})
        except (ValueError, TypeError, KeyError) as error:
            raise JobError(f"the record of a job can't be read ({error})") from error


@dataclass(frozen=True)
class WorkloadPace:
    """How one ingress gets on with a workload: its slots, jobs running and held, mean seconds of a job (0: unknown)."""

    slots: int = 0
    running: int = 0
    waiting: int = 0
    mean_s: float = 0.0


@dataclass(frozen=True)
class Board:
    """What one ingress is at. `running` holds ids of jobs; `at_s` is Unix time."""

    ingress: str
    at_s: float
    running: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    workloads: Mapping[str, WorkloadPace] = field(default_factory=dict)
    settled: Mapping[str, int] = field(default_factory=dict)

    def dump(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def load(cls, data: bytes) -> Board | None:
        """The opposite of `dump`; None for what is no board."""
        try:
            raw: dict[str, Any] = json.loads(data)
            paces = {name: WorkloadPace(**pace) for name, pace in raw["workloads"].items()}
            lists = {name: tuple(raw[name]) for name in ("running", "waiting")}
            return cls(**{**raw, **lists, "workloads": paces})
        except (ValueError, TypeError, KeyError, AttributeError):
            return None


def pace_of(boards: Iterable[Board], workload: str) -> WorkloadPace:
    """All ingresses' pace together: slots and counts add up, the mean is weighted by slots."""
    paces = [board.workloads[workload] for board in boards if workload in board.workloads]
    slots = sum(pace.slots for pace in paces)
    timed = [pace for pace in paces if pace.mean_s > 0]
    weight = sum(max(1, pace.slots) for pace in timed)
    mean_s = sum(pace.mean_s * max(1, pace.slots) for pace in timed) / weight if timed else 0.0
    return WorkloadPace(slots, sum(pace.running for pace in paces), sum(pace.waiting for pace in paces), mean_s)


class Records:
    """Job records, places in the queue and boards, in the store. Every method may raise StoreUnavailable."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    async def create_job(self, record: JobRecord) -> JobRecord:
        """Keep a job's record and its place in the queue; the record that is there if there is one."""
        identity = record.identity
        key = keys.job_key(identity.tenant, identity.job_id)
        if not await self._objects.create(key, record.dump()):
            there = await self._objects.get(key)
            return record if there is None else JobRecord.load(there)
        if record.wishes.queued_at_s is not None:
            place = keys.queued_key(record.workload, record.wishes.queued_at_s, identity.job_id)
            await self._objects.put(place, json.dumps(asdict(identity)).encode())
        return record

    async def job(self, tenant: str, job_id: str) -> JobRecord | None:
        data = await self._objects.get(keys.job_key(tenant, job_id))
        return None if data is None else JobRecord.load(data)

    async def at_place(self, place: str) -> Identity | None:
        """Whose place in a queue this is, by its key."""
        data = await self._objects.get(place)
        try:
            return None if data is None else Identity(**json.loads(data))
        except (ValueError, TypeError):
            return None

    async def leave_queue(self, workload: str, identity: Identity, queued_at_s: float) -> None:
        """The job has ended: it is in nobody's way any more."""
        await self._objects.delete([keys.queued_key(workload, queued_at_s, identity.job_id)])

    async def position(self, record: JobRecord) -> int:
        """How many jobs of its workload that were submitted by themselves are before it and have not ended."""
        assert record.wishes.queued_at_s is not None
        mine = keys.queued_key(record.workload, record.wishes.queued_at_s, record.identity.job_id)
        prefix = keys.queued_prefix(record.workload)
        return sum([1 async for entry in self._objects.list(prefix) if entry.key < mine])

    async def put_board(self, board: Board) -> None:
        await self._objects.put(keys.board_key(board.ingress), board.dump())

    async def drop_board(self, ingress: str) -> None:
        await self._objects.delete([keys.board_key(ingress)])

    async def boards(self, now_s: float) -> tuple[Board, ...]:
        """Boards of the ingresses that live; `now_s` is Unix time."""
        found = []
        for key in [entry.key async for entry in self._objects.list(keys.BOARDS)]:
            data = await self._objects.get(key)
            board = Board.load(data) if data is not None else None
            if board is not None and now_s - board.at_s <= BOARD_STALE_S:
                found.append(board)
        return tuple(found)

    async def remember_lane(self, workload: str) -> None:
        """Note that the workload's lane was used, so that it is emptied even when the workload is gone."""
        await self._objects.create(keys.lane_key(workload), b"")

    async def lanes(self) -> tuple[str, ...]:
        """Workloads whose lanes were ever used."""
        return tuple([entry.key.rsplit("/", 1)[-1] async for entry in self._objects.list(keys.LANES)])
