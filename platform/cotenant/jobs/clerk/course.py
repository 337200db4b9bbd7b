"""One batch's course, from its file to its last word, as the clerk takes it along. See `batches` for what is stored.

Each step can be done again by anybody, and what is decided is created once, so a clerk may die or be doubted at any
point. What is published is noted before (`upto`) and after (`done`): between the two it may be out or not, so it is
published again, which costs a lookup each; and when a batch is cancelled it counts as out.

In memory is what a batch consists of and how far each line is; bodies only while they are published.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from array import array
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cotenant.calls import Directory
from cotenant.calls.demand import Line
from cotenant.calls.desk import Json
from cotenant.config import Jobs
from cotenant.errors import IdentityConflict
from cotenant.jobs.clerk.assembly import Lines, write_outputs
from cotenant.jobs.clerk.intake import take_in
from cotenant.jobs.clerk.manifest import Manifest
from cotenant.jobs.clerk.windows import FIRST_LOOK_S, cheaper_to_list, next_look_s, to_publish, window
from cotenant.jobs.desk.batches import LIST, BatchRecord, PublishTo, closing_of
from cotenant.jobs.desk.files import Files
from cotenant.jobs.desk.paging import gathered
from cotenant.jobs.endings import BATCH_CANCELLED, BATCH_EXPIRED, HEAD_BYTES, status_in
from cotenant.jobs.lines import LineProblem
from cotenant.jobs.model import Identity, Result, Wishes, error_line, parse_line
from cotenant.jobs.queue.lanes import MAIN, lane_of, topic_of
from cotenant.jobs.queue.source import Message
from cotenant.jobs.store import keys
from cotenant.jobs.store.keys import dead_key, result_key
from cotenant.jobs.store.records import WorkloadPace
from cotenant.jobs.store.results import ResultStore

#: A mark of cancellation stays so long after the end, for every ingress to see.
MARK_STAYS_S = 30.0
_AT_ONCE = 32
_YIELD_EVERY = 2000

_NEW, _OUT, _DONE, _FAILED = range(4)


@dataclass(frozen=True)
class Surroundings:
    """What courses share. `publish` is to a topic by its short name, `now` is Unix time."""

    store: ResultStore
    publish: PublishTo
    jobs: Jobs
    directory: Callable[[], Directory]
    now: Callable[[], float]
    pace: Callable[[str], Awaitable[WorkloadPace]]
    """Of a workload, all ingresses together."""
    actives: Callable[[str], Awaitable[int]]
    """How many of a tenant's batches are being seen through."""
    on_ended: Callable[[BatchRecord, Json], Awaitable[None]]
    """Told of a batch and its last word, at least once."""


@dataclass
class _Stream:
    """The lines of one workload, in their order: `done` are published, up to `upto` they may be."""

    workload: str
    lines: array[int] = field(default_factory=lambda: array("L"))
    done: int = 0
    upto: int = 0
    out: list[int] = field(default_factory=list)


class Course:
    """The course of one batch. Not to be advanced by two tasks at once."""

    def __init__(self, record: BatchRecord, around: Surroundings) -> None:
        self._record = record
        self._around = around
        self._store = around.store
        self._objects = around.store.objects
        self._files = Files(around.store.objects, now=around.now)
        self._manifest: Manifest | None = None
        self._state = bytearray()
        self._streams: list[_Stream] = []
        self._noted: Json = {}
        self._input_gone = False
        self._pause_s = FIRST_LOOK_S
        self._told = False

    async def advance(self) -> float | None:
        """As far as it goes now: seconds until the next look, None when there is nothing left to do."""
        tenant, batch = self._record.tenant, self._record.id
        ended = await self._objects.get(keys.ended_key(tenant, batch))
        if ended is not None:
            return await self._leave(json.loads(ended))
        closing = await self._decided()
        if self._manifest is None:
            problems = await self._take_up(closing is not None)
            if problems:
                return await self._leave(await self._end({"status": "failed", "errors": problems}))
        await self._catch_up()
        if closing is None:
            began_s = time.monotonic()
            moved = await self._look()
            looked_s = time.monotonic() - began_s
            await self._publish_more()
            if any(stream.out for stream in self._streams) or (self._unpublished and not self._input_gone):
                return await self._next(moved, looked_s)
            closing = await self._decide("completed", self._around.now())
        return await self._leave(await self._close(closing))

    # --- beginning ---

    async def _take_up(self, closing: bool) -> list[Json]:
        """Know what the batch consists of: from its manifest, or from its file, which is then checked."""
        tenant, batch = self._record.tenant, self._record.id
        data = await self._store.manifest(tenant, batch)
        manifest = Manifest.load(data) if data is not None else None
        if manifest is None and closing:
            return []
        if manifest is None:
            await self._objects.put(keys.active_key(tenant, batch), b"")
            await self._objects.put(keys.listed_key(tenant, LIST, self._record.created_at, batch), b"")
            around = self._around
            manifest, problems = await take_in(
                self._record, self._files, self._objects, around.directory(), around.now()
            )
            if problems:
                return [problem.shown() for problem in problems]
            ours = manifest.dump(tenant, batch)
            there = await self._store.create_manifest(tenant, batch, ours)
            if there != ours:
                if not _same_jobs(there, manifest):
                    text = f"batch {batch} exists with other jobs; submit these under another name"
                    return [LineProblem("batch_exists", text).shown()]
                manifest = Manifest.load(there) or manifest
        self._manifest = manifest
        self._state = bytearray(len(manifest))
        self._streams = [_Stream(workload) for workload in manifest.workloads]
        for index, which in enumerate(manifest.which):
            self._streams[which].lines.append(index)
        return []

    # --- how far it is ---

    async def _catch_up(self) -> None:
        """Learn what other clerks, or an earlier life, have published; and at first what has ended."""
        data = await self._objects.get(keys.progress_key(self._record.tenant, self._record.id))
        noted: Mapping[str, Any] = json.loads(data) if data is not None else {}
        fresh = not self._noted
        if fresh and self._manifest is not None and noted:
            await self._remember(int(noted["failed"]))
        for stream in self._streams:
            done, upto = noted.get("published", {}).get(stream.workload, (0, 0))
            for index in stream.lines[stream.done : done]:
                if self._state[index] == _NEW:
                    self._state[index] = _OUT
                    stream.out.append(index)
            stream.done = max(stream.done, done)
            stream.upto = max(stream.upto, upto, stream.done)
        if fresh:
            await self._note()

    async def _remember(self, failed: int) -> None:
        """Learn what has ended in an earlier life, from names. How is not known but for the number that had failed."""
        assert self._manifest is not None
        results, dead = await self._store.settled(self._record.tenant, self._record.id)
        prefix = keys.batch_prefix(self._record.tenant, self._record.id)
        for index, custom_id in enumerate(self._manifest.custom_ids):
            name = f"{keys.segment(custom_id)}.json"
            if f"{prefix}/results/{name}" in results:
                self._state[index] = _DONE
            elif f"{prefix}/dead/{name}" in dead:
                self._state[index] = _FAILED
            if index % _YIELD_EVERY == 0:
                await asyncio.sleep(0)
        missing = failed - self._state.count(_FAILED)
        at = -1
        for _ in range(max(0, missing)):
            at = self._state.find(_DONE, at + 1)
            if at < 0:
                return
            self._state[at] = _FAILED

    async def _note(self) -> None:
        """Write the progress, if it is another than was written last."""
        noted: Json = {
            "began_at": self._manifest.began_at if self._manifest is not None else None,
            "total": len(self._state),
            "completed": self._state.count(_DONE),
            "failed": self._state.count(_FAILED),
            "published": {stream.workload: [stream.done, stream.upto] for stream in self._streams},
        }
        if noted != self._noted:
            key = keys.progress_key(self._record.tenant, self._record.id)
            await self._objects.put(key, json.dumps(noted).encode())
            self._noted = noted

    async def _look(self) -> bool:
        """Find out which lines have ended. Whether any has."""
        out = [index for stream in self._streams for index in stream.out]
        if not out:
            return False
        prefix = keys.batch_prefix(self._record.tenant, self._record.id)
        candidates = out
        if cheaper_to_list(published=sum(stream.done for stream in self._streams), out=len(out)):
            listed = {entry.key async for entry in self._objects.list(f"{prefix}/results")}
            candidates = [index for index in out if result_key(self._identity(index)) in listed]
        heads = await gathered(self._head, candidates, at_once=_AT_ONCE)
        ended = {index: head for index, head in zip(candidates, heads, strict=True) if head is not None}
        dead = {entry.key async for entry in self._objects.list(f"{prefix}/dead")}
        for index in out:
            head = ended.get(index)
            if head is not None:
                status = status_in(head)
                self._state[index] = _DONE if status is not None and 0 < status < 400 else _FAILED
            elif dead and dead_key(self._identity(index)) in dead:
                self._state[index] = _FAILED
        for stream in self._streams:
            stream.out = [index for index in stream.out if self._state[index] == _OUT]
        return sum(len(stream.out) for stream in self._streams) < len(out)

    async def _head(self, index: int) -> bytes | None:
        return await self._objects.part(result_key(self._identity(index)), 0, HEAD_BYTES)

    async def _next(self, moved: bool, looked_s: float) -> float:
        fullest = max(self._streams, key=lambda stream: len(stream.out))
        pace = await self._around.pace(fullest.workload)
        self._pause_s = next_look_s(
            before_s=self._pause_s, moved=moved, out=len(fullest.out), pace=pace, looked_s=looked_s
        )
        return self._pause_s

    # --- publishing ---

    def behind(self) -> dict[str, Line]:
        """Lines that are not out yet, by workload."""
        now, record = self._around.now(), self._record
        left_s = None if record.deadline_at_s is None else record.deadline_at_s - now
        return {
            stream.workload: Line(count, oldest_s=max(0.0, now - record.created_at), left_s=left_s, exact=True)
            for stream in self._streams
            if stream.workload and (count := len(stream.lines) - stream.done) and not self._input_gone
        }

    @property
    def _unpublished(self) -> bool:
        return any(stream.done < len(stream.lines) for stream in self._streams)

    async def _publish_more(self) -> None:
        """Fill the windows."""
        chosen: dict[int, int] = {}
        batches = await self._around.actives(self._record.tenant) if self._unpublished else 1
        for at, stream in enumerate(self._streams):
            if self._input_gone or stream.done == len(stream.lines):
                continue
            pace = await self._around.pace(stream.workload)
            count = to_publish(
                unpublished=len(stream.lines) - stream.done,
                out=len(stream.out),
                window=window(pace, look_s=self._pause_s, batches=batches),
            )
            if count:
                stream.upto = max(stream.upto, stream.done + count)
                for index in stream.lines[stream.done : stream.done + count]:
                    chosen[index] = at
        await self._note()
        assert self._manifest is not None or not chosen
        for run in self._manifest.runs(list(chosen)) if self._manifest is not None else ():
            if not await self._publish_run(run, chosen):
                break
        await self._note()

    async def _publish_run(self, run: list[int], stream_of: Mapping[int, int]) -> bool:
        """Publish lines that lie together in the file; whether they could be read."""
        assert self._manifest is not None
        start, length = self._manifest.span(run)
        data_key = keys.file_keys(self._record.tenant, self._record.input_file_id)[1]
        data = await self._objects.part(data_key, start, length)
        if data is None:
            self._input_gone = True
            return False
        by_stream: dict[int, list[Message]] = {}
        for index in run:
            # Ended already: published in an earlier life that could not note it.
            if self._state[index] == _NEW:
                at = self._manifest.offsets[index] - start
                message = await self._message(data[at : at + self._manifest.lengths[index]])
                by_stream.setdefault(stream_of[index], []).append(message)
        for at, messages in by_stream.items():
            lane = lane_of(workload) if (workload := self._streams[at].workload) else MAIN
            await self._around.publish(topic_of(self._around.jobs, lane), messages)
        for index in run:
            stream = self._streams[stream_of[index]]
            stream.done += 1
            if self._state[index] == _NEW:
                self._state[index] = _OUT
                stream.out.append(index)
        return True

    async def _message(self, data: bytes) -> Message:
        job = parse_line(data, tenant=self._record.tenant, batch=self._record.id)
        job = await self._store.by_reference(job)
        job = dataclasses.replace(job, wishes=Wishes(self._record.priority, self._record.deadline_at_s))
        return Message(job.line(), job.attributes)

    # --- the end ---

    async def _decided(self) -> Json | None:
        """How the batch ends, where that is known: decided before, or now by its mark or its age."""
        tenant, batch = self._record.tenant, self._record.id
        closing = closing_of(await self._objects.get(keys.closing_key(tenant, batch)))
        if closing is not None:
            return closing
        mark = await self._objects.get(keys.cancelled_batch_key(tenant, batch))
        now = self._around.now()
        if mark is not None:
            return await self._decide("cancelled", now, asked_at=int(mark) if mark.isdigit() else int(now))
        if now >= self._record.expires_at:
            return await self._decide("expired", now)
        return None

    async def _decide(self, outcome: str, at_s: float, *, asked_at: int | None = None) -> Json:
        """Close with `outcome`, unless the batch closes otherwise already: how it closes."""
        key = keys.closing_key(self._record.tenant, self._record.id)
        ours: Json = {"outcome": outcome, "at_s": at_s, "asked_at": asked_at}
        if await self._objects.create(key, json.dumps(ours).encode()):
            return ours
        return closing_of(await self._objects.get(key)) or ours

    async def _close(self, closing: Json) -> Json:
        """End what is out, write the files, say the last word."""
        tenant, batch, outcome = self._record.tenant, self._record.id, closing["outcome"]
        word: Json = {"status": outcome, "closed_at": int(closing["at_s"]), "asked_at": closing["asked_at"]}
        if self._manifest is None:
            return await self._end(word)
        code, text = _UNFINISHED[outcome]
        if outcome != "completed":
            await self._objects.create(keys.cancelled_batch_key(tenant, batch), b"")
            await gathered(lambda index: self._call_off(index, code, text), self._maybe_out(), at_once=_AT_ONCE)
        published = bytearray(len(self._manifest))
        for stream in self._streams:
            for index in stream.lines[: max(stream.done, stream.upto)]:
                published[index] = 1
        lines = Lines(self._store, self._record, self._manifest, published, undone=(code, text))
        written = await write_outputs(lines, self._files, self._record, closing["at_s"])
        return await self._end({**word, **dataclasses.asdict(written)})

    def _maybe_out(self) -> list[int]:
        """Lines that are published, or may be, and are not known to have ended."""
        return [
            index
            for stream in self._streams
            for index in stream.lines[: max(stream.done, stream.upto)]
            if self._state[index] in (_NEW, _OUT)
        ]

    async def _call_off(self, index: int, code: str, text: str) -> None:
        """Give a line the result that it was called off, unless it has one."""
        assert self._manifest is not None
        identity = self._identity(index)
        if await self._store.buried(identity) is not None:
            return
        try:
            await self._store.create_result(
                Result(identity, self._manifest.sha256s[index], error_line(identity, code, text))
            )
        except IdentityConflict:
            return

    async def _end(self, word: Json) -> Json:
        """Say the last word, unless it was said: what it is."""
        key = keys.ended_key(self._record.tenant, self._record.id)
        ours = {
            "began_at": self._manifest.began_at if self._manifest is not None else None,
            "total": len(self._state),
            "ended_at_s": self._around.now(),
            **word,
        }
        if await self._objects.create(key, json.dumps(ours).encode()):
            return ours
        there = await self._objects.get(key)
        ended: Json = json.loads(there) if there is not None else ours
        return ended

    async def _leave(self, ended: Json) -> float | None:
        """Tell who wants to know, and clean up. A mark stays a little longer than the batch."""
        tenant, batch = self._record.tenant, self._record.id
        self._manifest, self._streams, self._state = None, [], bytearray()
        if not self._told:
            await self._around.on_ended(self._record, ended)
            self._told = True
        await self._objects.delete([keys.active_key(tenant, batch)])
        if await self._objects.get(keys.cancelled_batch_key(tenant, batch)) is not None:
            left_s = float(ended["ended_at_s"]) + MARK_STAYS_S - self._around.now()
            if left_s > 0:
                return left_s
            await self._store.forget_cancelled_batch(tenant, batch)
        return None

    def _identity(self, index: int) -> Identity:
        assert self._manifest is not None
        return Identity(self._record.tenant, self._record.id, self._manifest.custom_ids[index])


_UNFINISHED: Mapping[str, tuple[str, str]] = {
    "cancelled": (BATCH_CANCELLED, "the batch was cancelled before this job was done"),
    "expired": (BATCH_EXPIRED, "the batch's completion window passed before this job was done"),
    "completed": ("input_file_gone", "the batch's file was deleted before this job was published"),
}


def _same_jobs(data: bytes, manifest: Manifest) -> bool:
    jobs = [[custom_id, sha256] for custom_id, sha256 in zip(manifest.custom_ids, manifest.sha256s, strict=True)]
    return bool(json.loads(data)["jobs"] == jobs)
