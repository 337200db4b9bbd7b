"""One delivery's way from message to visible result, in steps that can be taken up again where they stopped.

The order is what makes a job effectively once: look for the result, do the work, create the result object, publish
the result message; the ack comes after. Whatever step fails, `advance` can simply be called again: what is done
is kept in the `Work` and not done twice.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cotenant.calls import JSON_TYPE, Backend, Call, Directory, Reply, Served, WorkloadStatus, error_reply
from cotenant.config import Jobs
from cotenant.errors import CotenantError, DeadlineExceeded, UnknownWorkload, WorkloadUnavailable
from cotenant.jobs.batcher import Batcher
from cotenant.jobs.model import (
    ATTEMPTS,
    OUTCOME,
    REASON,
    STATUS,
    Identity,
    Job,
    Result,
    error_line,
    is_large,
    parse_body,
    parse_job,
    result_line,
)
from cotenant.jobs.settlement import Outcome, of_error, of_reply
from cotenant.jobs.slots import Slots
from cotenant.jobs.source import Delivery, JobSource, Message
from cotenant.jobs.store import ResultStore
from cotenant.telemetry.logs import event

#: The backend keeps the deadline; this much later we stop believing that it does.
DEADLINE_GRACE_S = 30.0
#: Pub/Sub's limits on the attributes of a message.
_MAX_ATTRIBUTES, _MAX_ATTRIBUTE_BYTES = 100, 1024

_log = logging.getLogger("cotenant.jobs")


class Phase(str, enum.Enum):
    """Where a held message stands. Only RUNNING and SETTLING are worth waiting for when the ingress drains."""

    WAITING = "waiting"
    RUNNING = "running"
    SETTLING = "settling"


@dataclass
class Work:
    """A delivery that is held, and everything already done for it."""

    delivery: Delivery
    phase: Phase = Phase.WAITING
    job: Job | None = None
    workload: str = ""
    reply: Reply | None = None
    result: Result | None = None
    visible: bool = False
    announced: bool = False
    ended: Outcome = Outcome.DONE
    given_up: Outcome | None = None
    """Set where the message is to be dead-lettered: why."""
    reason: str = ""
    holds: int = 0
    settled: bool = False

    @property
    def undone(self) -> bool:
        """Whether it still needs a slot of its workload."""
        return self.reply is None and self.result is None and self.given_up is None


class Steps:
    """Takes deliveries on, step by step, against the three edges: source, store, backend."""

    def __init__(
        self, jobs: Jobs, source: JobSource, store: ResultStore, backend: Backend, directory: Directory
    ) -> None:
        self.directory = directory
        self.slots = Slots()
        self.status: Mapping[str, WorkloadStatus] = {}
        self._jobs = jobs
        self._store = store
        self._backend = backend
        self._owners: dict[Identity, Work] = {}
        self._results = Batcher[Message](lambda messages: source.publish(jobs.results, messages))
        self._dead = Batcher[Message](lambda messages: source.publish(jobs.dead_letter, messages))

    async def advance(self, work: Work) -> Outcome:
        """Take `work` as far as it goes now. Says how that ended; raises nothing but cancellation."""
        try:
            return await (self._bury(work) if work.given_up is not None else self._advance(work))
        except Exception as error:
            work.reason = str(error) or type(error).__name__
            outcome = of_error(error)
            if not isinstance(error, CotenantError):
                work.reason = f"{type(error).__name__}: {work.reason}"
                event(_log, "job_crashed", level=logging.ERROR, error=error, **names(work))
            return outcome

    def forget(self, work: Work) -> None:
        """`work` is settled or handed back: another delivery of the job may go ahead."""
        if work.job is not None and self._owners.get(work.job.identity) is work:
            del self._owners[work.job.identity]

    async def _advance(self, work: Work) -> Outcome:
        if work.job is None:
            work.job = parse_job(work.delivery.data, work.delivery.attributes, work.delivery.message_id)
        job = work.job
        if self._owners.setdefault(job.identity, work) is not work:
            return Outcome.IN_PROGRESS
        if work.result is None and work.reply is None:
            work.result = await self._store.result_of(job)
            if work.result is not None:
                work.visible, work.ended = True, Outcome.ALREADY_DONE
            elif (outcome := await self._call(work, job)) is not None:
                return outcome
        work.phase = Phase.SETTLING
        if work.result is None and work.reply is not None:
            stored = await self._store.put_output(job.identity, work.reply) if is_large(work.reply) else None
            work.result = Result(job.identity, job.sha256, result_line(job, work.reply, stored))
            work.reply = None
        assert work.result is not None
        if not work.visible:
            work.result = await self._store.create_result(work.result)
            work.visible = True
        if not work.announced:
            attributes = {**job.identity.attributes, STATUS: str(work.result.status)}
            await self._results.add(Message(work.result.line, attributes))
            work.announced = True
        return work.ended

    async def _call(self, work: Work, job: Job) -> Outcome | None:
        """Have the workload do the job. None with `work.reply` set where that gave a result."""
        body = await self._store.body(job)
        parsed = parse_body(body)
        served = self.directory.route(job.url, parsed)
        if parsed.get("stream"):
            work.reply = error_reply(400, "a job has nobody to stream to; leave stream out", param="stream")
            work.ended = Outcome.REFUSED
            return None
        work.workload = served.name
        if self._crowded(work, served):
            work.reason = self._why_not_ready(served)
            return Outcome.CROWDED_OUT
        work.phase = Phase.WAITING
        await self.slots.take(served.name)
        try:
            work.phase = Phase.RUNNING
            reply = await self._reply(served, job, body)
        except (WorkloadUnavailable, DeadlineExceeded, UnknownWorkload):
            # The directory knows the workload, so one that is not there (yet) is down, and not the job's fault.
            if await self._is_ready(served):
                raise
            work.reason = self._why_not_ready(served)
            return Outcome.NOT_READY
        finally:
            work.phase = Phase.WAITING
            self.slots.give(served.name)
        outcome = of_reply(reply)
        if outcome not in (Outcome.DONE, Outcome.REFUSED):
            work.reason = f"{served.name} answered {reply.status}: {reply.body[:500].decode(errors='replace')}"
            return outcome
        work.reply, work.ended = reply, outcome
        return None

    async def _reply(self, served: Served, job: Job, body: bytes) -> Reply:
        call = Call(
            url=job.url,
            body=body,
            # Mockups as they are: base64 inside JSON would have to be undone to store them. The image routes answer
            # in OpenAI's form, as its batches do.
            accept="image/*" if served.kind == "mockup" else JSON_TYPE,
            request_id=job.identity.job_id,
            tenant=job.identity.tenant,
            deadline_s=served.deadline_s,
            batch=True,
        )
        try:
            return await asyncio.wait_for(self._backend.call(served.name, call), served.deadline_s + DEADLINE_GRACE_S)
        except asyncio.TimeoutError:
            raise DeadlineExceeded(f"{served.name} did not answer within {served.deadline_s:g} s") from None

    async def _bury(self, work: Work) -> Outcome:
        """Publish the dead letter, and leave word in the store for whoever waits for the batch."""
        work.phase = Phase.SETTLING
        assert work.given_up is not None
        if work.job is not None and work.given_up is not Outcome.CONFLICT:
            await self._store.bury(work.job.identity, error_line(work.job.identity, work.given_up.value, work.reason))
        if not work.announced:
            await self._dead.add(dead_letter(work.delivery, work.given_up, work.reason))
            work.announced = True
        return Outcome.BURIED

    def _crowded(self, work: Work, served: Served) -> bool:
        """Whether a job of a workload that is down must make room for those of workloads that are up."""
        if self._ready(served) or not any(self._ready(other) for other in self.directory.workloads):
            return False
        kept = sum(w.undone and w.workload == served.name for w in self._owners.values() if w is not work)
        return kept >= max(1, self._jobs.look_ahead)

    def _ready(self, served: Served) -> bool:
        status = self.status.get(served.name)
        return status is not None and status.ready

    async def _is_ready(self, served: Served) -> bool:
        """Asked afresh; where that fails too, what was known last."""
        try:
            self.status = await self._backend.status()
        except Exception as error:
            event(_log, "status_failed", level=logging.WARNING, error=error)
        return self._ready(served)

    def _why_not_ready(self, served: Served) -> str:
        status = self.status.get(served.name)
        return f"{served.name} is not ready: {(status.message if status else '') or 'no replica runs'}"


def dead_letter(delivery: Delivery, outcome: Outcome, reason: str) -> Message:
    """The message as it came, with the reason in its attributes."""
    ours = {
        OUTCOME: outcome.value,
        REASON: _clip(reason or outcome.value),
        ATTEMPTS: str(delivery.attempt),
        "message_id": delivery.message_id,
    }
    theirs = {key: value for key, value in delivery.attributes.items() if key not in ours}
    kept = dict(list(theirs.items())[: _MAX_ATTRIBUTES - len(ours)])
    return Message(delivery.data, {**kept, **ours})


def _clip(text: str) -> str:
    return text.encode("utf-8", "replace")[:_MAX_ATTRIBUTE_BYTES].decode("utf-8", "ignore")


def names(work: Work) -> dict[str, Any]:
    """What a log line says about a job; never its body."""
    if work.job is None:
        return {"message_id": work.delivery.message_id}
    return {"message_id": work.delivery.message_id, "job_id": work.job.identity.job_id, **work.job.identity.attributes}
