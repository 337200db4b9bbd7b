"""One delivery's way from message to visible result, in steps that can be taken up again where they stopped.

The order is what makes a job effectively once: look for the result, do the work, create the result object, publish
the result message; the ack comes after. Whatever step fails, `advance` can simply be called again: what is done
is kept in the `Work` and not done twice.
"""

from __future__ import annotations

import asyncio
import enum
import json
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cotenant.calls import JSON_TYPE, Backend, Call, Directory, Reply, Served, WorkloadStatus, error_reply
from cotenant.calls.cost import units_of
from cotenant.calls.hops import is_from_elsewhere
from cotenant.config import Jobs
from cotenant.errors import (
    CotenantError,
    DeadlineExceeded,
    RequestRefused,
    StoreUnavailable,
    UnknownWorkload,
    WorkloadUnavailable,
)
from cotenant.jobs.clock import Clock
from cotenant.jobs.desk.references import resolve_files
from cotenant.jobs.errand import Clerk, Errand
from cotenant.jobs.ingress.batcher import Batcher
from cotenant.jobs.ingress.settlement import TABLE, Outcome, of_error, of_reply
from cotenant.jobs.ingress.slots import Slots
from cotenant.jobs.model import (
    ATTEMPTS,
    BATCH,
    HISTORY,
    MESSAGE_ID,
    ORIGIN,
    OUTCOME,
    REASON,
    RETRIED,
    SOURCE_TOPIC,
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
from cotenant.jobs.queue.lanes import CLERK, lane_of, topic_of, workload_of
from cotenant.jobs.queue.source import MAX_ATTRIBUTE_BYTES, Delivery, Message, fitting
from cotenant.jobs.store.records import Records
from cotenant.jobs.store.results import Attempt, Marks, ResultStore
from cotenant.jobs.store.runs import Ran, RunLog
from cotenant.telemetry.logs import event

#: The backend keeps the deadline; this much later we stop believing that it does.
DEADLINE_GRACE_S = 30.0
#: After so long a wait for a slot it is looked again whether another ingress has done the job meanwhile.
LOOK_AGAIN_AFTER_S = 1.0
#: Result messages wait so long for others.
MESSAGE_LINGER_S = 0.01
#: Attempts that are kept with a job, and that a dead letter tells.
_KEPT_ATTEMPTS = 100

#: Has a workload answer a call; calls of the same workload and group (not None) may travel together.
Caller = Callable[[str, Call, Hashable | None], Awaitable[Reply]]

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
    lane: str = ""
    phase: Phase = Phase.WAITING
    job: Job | None = None
    workload: str = ""
    units: float = 1.0
    """What the job costs (`calls.cost`)."""
    reply: Reply | None = None
    result: Result | None = None
    visible: bool = False
    announced: bool = False
    told: bool = False
    ended: Outcome = Outcome.DONE
    given_up: Outcome | None = None
    """Set where the message is to be dead-lettered: why."""
    reason: str = ""
    holds: int = 0
    settled: bool = False
    attempts: tuple[Attempt, ...] = ()
    attempts_known: bool = False
    failed: Outcome | None = None
    """A failure that is not yet kept with the job."""
    calling: asyncio.Task[Reply] | None = None
    cancelled: bool = False
    given_back: bool = False
    """Settled by giving the message back: it comes again."""
    ended_in_order: asyncio.Future[bool] | None = None
    """For a message with an ordering key: told, when it is let go, whether the next one may follow."""
    look_again_s: float = 0.0
    """For an errand that goes on: when to look at it again."""

    @property
    def undone(self) -> bool:
        """Whether it still needs a slot of its workload."""
        return self.reply is None and self.result is None and self.given_up is None and self.lane != CLERK

    def cancel(self) -> None:
        """Its job is not wanted any more: end the call, if there is one."""
        self.cancelled = True
        if self.calling is not None:
            self.calling.cancel()


@dataclass
class Edges:
    """What the steps are taken against. `publish` takes any topic's short name."""

    publish: Callable[[str, Sequence[Message]], Awaitable[object]]
    store: ResultStore
    backend: Backend
    clerk: Clerk
    caller: Caller


class Steps:
    """Takes deliveries on, step by step, against the edges."""

    def __init__(
        self,
        jobs: Jobs,
        edges: Edges,
        directory: Directory,
        clock: Clock,
        *,
        has_room: Callable[[str, Work], bool],
        counts: Callable[[Work], None],
    ) -> None:
        """
        Args:
            has_room: whether a workload can take on a work besides those held.
            counts: told of a work that counts differently now: its workload is known, or it is done.
        """
        self.directory = directory
        self.slots = Slots()
        self.status: Mapping[str, WorkloadStatus] = {}
        self._served_since: dict[str, float] = {}
        self.marks = Marks()
        self.seconds: dict[tuple[str, str], float] = defaultdict(float)
        """Seconds in which jobs had a slot, by workload and tenant."""
        self._jobs = jobs
        self._edges = edges
        self._store = edges.store
        self._records = Records(edges.store.objects)
        self._runs = RunLog(edges.store.objects, clock)
        self._clock = clock
        self._has_room = has_room
        self._counts = counts
        self._owners: dict[Identity, Work] = {}
        self._publishers: dict[str, Batcher[Message]] = {}

    async def advance(self, work: Work) -> Outcome:
        """Take `work` as far as it goes now. Says how that ended; raises nothing but cancellation."""
        try:
            if work.failed is None:
                outcome = await self._step(work)
                if not TABLE[outcome].attempt:
                    return outcome
                work.failed = outcome
                work.attempts = (*work.attempts, Attempt(self._clock.unix_s(), outcome.value, work.reason[:1000]))
            if work.job is not None:
                await self._store.put_attempts(work.job.identity, work.attempts[-_KEPT_ATTEMPTS:])
        except StoreUnavailable as error:
            work.reason = str(error)
            return Outcome.STORE_DOWN
        outcome, work.failed = work.failed, None
        return outcome

    async def _step(self, work: Work) -> Outcome:
        try:
            if work.given_up is not None:
                return await self._bury(work)
            return await (self._run_errand(work) if work.lane == CLERK else self._advance(work))
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

    async def _run_errand(self, work: Work) -> Outcome:
        again_s = await self._edges.clerk.advance(Errand.of(work.delivery))
        if again_s is None:
            return Outcome.DONE
        work.look_again_s = again_s
        return Outcome.WATCHING

    async def _advance(self, work: Work) -> Outcome:
        if work.job is None:
            work.job = parse_job(work.delivery.data, work.delivery.attributes, work.delivery.message_id)
        job = work.job
        if self._owners.setdefault(job.identity, work) is not work:
            return Outcome.IN_PROGRESS
        if not work.attempts_known:
            if work.delivery.attempt > 1 or RETRIED in work.delivery.attributes:
                work.attempts = await self._store.attempts(job.identity)
            work.attempts_known = True
        if work.result is None and work.reply is None:
            work.result = await self._store.result_of(job)
            if work.result is not None:
                work.visible, work.ended = True, Outcome.ALREADY_DONE
            elif (outcome := await self._call(work, job)) is not None:
                return outcome
        work.phase = Phase.SETTLING
        self._counts(work)
        await self._settle(work, job)
        return work.ended

    async def _settle(self, work: Work, job: Job) -> None:
        """From a reply to a visible result that everybody who wants to know was told of."""
        if work.result is None and work.reply is not None:
            stored = await self._store.put_output(job.identity, work.reply) if is_large(work.reply) else None
            work.result = Result(job.identity, job.sha256, result_line(job, work.reply, stored))
            work.reply = None
        assert work.result is not None
        if not work.visible:
            work.result = await self._store.create_result(work.result)
            work.visible = True
        if not work.announced:
            attributes = {**job.identity.attributes, STATUS: str(work.result.status), OUTCOME: work.ended.value}
            await self._publish(self._jobs.results, Message(work.result.line, attributes))
            work.announced = True
        await self._tell(work, job, work.result)

    async def _tell(self, work: Work, job: Job, result: Result) -> None:
        """A job has ended, well or not: its webhook is told, its place in the queue and its mark are given up."""
        if work.told:
            return
        if job.wishes.webhook is not None:
            await self._edges.clerk.job_ended(job, result)
        workload = work.workload or workload_of(work.lane)
        if job.wishes.queued_at_s is not None and workload:
            await self._records.leave_queue(workload, job.identity, job.wishes.queued_at_s)
        if work.ended is Outcome.CANCELLED or job.identity in self.marks:
            await self._store.forget_cancelled(job.identity)
        work.told = True

    async def _call(self, work: Work, job: Job) -> Outcome | None:
        """Have the workload do the job. None with `work.reply` or `work.result` set where that gave a result."""
        body = await self._store.body(job)
        parsed = parse_body(body)
        served = self.directory.route(job.url, parsed)
        work.workload, work.units = served.name, units_of(served.kind, parsed)
        self._counts(work)
        if job.identity in self.marks:
            work.cancelled = True
        if parsed.get("stream"):
            work.reply = error_reply(400, "a job has nobody to stream to; leave stream out", param="stream")
            work.ended = Outcome.REFUSED
            return None
        if not work.cancelled and self._has_to_move(work, served):
            return await self._forward(work, served)
        work.phase = Phase.WAITING
        reply, outcome = await self._answer(work, served, job, body)
        if reply is None and outcome in (Outcome.CANCELLED, Outcome.EXPIRED):
            text = "the job was cancelled" if outcome is Outcome.CANCELLED else "its deadline passed before it began"
            work.result = Result(job.identity, job.sha256, error_line(job.identity, outcome.value, text))
            work.ended = outcome
            return None
        if reply is None:
            return outcome
        outcome = of_reply(reply)
        if outcome not in (Outcome.DONE, Outcome.REFUSED):
            work.reason = f"{served.name} answered {reply.status}: {reply.body[:500].decode(errors='replace')}"
            return outcome
        work.reply, work.ended = reply, outcome
        return None

    async def _answer(self, work: Work, served: Served, job: Job, body: bytes) -> tuple[Reply | None, Outcome]:
        """The workload's reply once it is the job's turn, or how it ended without one."""
        if work.cancelled:
            return None, Outcome.CANCELLED
        work.calling = asyncio.ensure_future(self._in_turn(work, served, job, body))
        try:
            return await work.calling, Outcome.DONE
        except _Expired:
            return None, Outcome.EXPIRED
        except _Overtaken:
            return None, Outcome.IN_PROGRESS
        except RequestRefused as error:
            return error_reply(error.status, str(error), param=error.param, code=error.code), Outcome.REFUSED
        except asyncio.CancelledError:
            if not work.cancelled:
                raise
            return None, Outcome.CANCELLED
        except (WorkloadUnavailable, DeadlineExceeded, UnknownWorkload) as error:
            # The directory knows the workload, so one that is not there (yet) is down, and not the job's fault; it
            # may have come up between the call and this look at it.
            if await self._is_ready(served) and not isinstance(error, UnknownWorkload):
                raise
            work.reason = self._why_not_ready(served)
            return None, Outcome.NOT_READY
        finally:
            work.calling = None
            work.phase = Phase.WAITING

    async def _in_turn(self, work: Work, served: Served, job: Job, body: bytes) -> Reply:
        """Wait for a slot, and for the reply."""
        tenant, wishes = job.identity.tenant, job.wishes
        asked = self._clock.now()
        await self.slots.take(served.name, tenant, priority=wishes.priority, deadline_at_s=wishes.deadline_at_s)
        began, answered, good = self._clock.now(), False, False
        try:
            if wishes.deadline_at_s is not None and self._clock.unix_s() > wishes.deadline_at_s:
                raise _Expired
            if began - asked > LOOK_AGAIN_AFTER_S and await self._store.result_of(job) is not None:
                raise _Overtaken
            body, files = await resolve_files(self._store.objects, tenant, body)
            work.phase = Phase.RUNNING
            reply = await self._reply(work, served, job, body, files)
            answered, good = True, reply.ok and not is_from_elsewhere(reply.headers)
            return reply
        finally:
            # Of a job that was sent while no replica served, what came before there was one is no work.
            seconds = self._clock.now() - max(began, self._served_since.get(served.name, began))
            self.seconds[served.name, tenant] += seconds
            self.slots.give(served.name, tenant, seconds, answered=answered, good=good, units=work.units)
            if good:
                self._runs.ran(
                    Ran(
                        workload=served.name,
                        tenant=tenant,
                        batch=job.identity.batch,
                        came_s=wishes.queued_at_s or work.delivery.published_at_s,
                        began_s=self._clock.unix_s() - seconds,
                        seconds=seconds,
                        deadline_at_s=wishes.deadline_at_s,
                        units=work.units,
                    )
                )

    async def _reply(self, work: Work, served: Served, job: Job, body: bytes, files: Mapping[str, bytes]) -> Reply:
        call = Call(
            url=job.url,
            body=body,
            files=files,
            # Mockups as they are: base64 inside JSON would have to be undone to store them. The image routes answer
            # in OpenAI's form, as its batches do.
            accept="image/*" if served.kind == "mockup" else JSON_TYPE,
            request_id=job.identity.job_id,
            tenant=job.identity.tenant,
            deadline_s=float(self._jobs.max_job_s),
            batch=True,
            priority=job.wishes.priority,
            units=work.units,
        )
        # One that has failed goes alone: it may be what broke its replica.
        first = not work.attempts and work.delivery.attempt == 1
        group = (job.identity.tenant, work.delivery.attributes.get(BATCH, "")) if first else None
        try:
            return await asyncio.wait_for(
                self._edges.caller(served.name, call, group), self._jobs.max_job_s + DEADLINE_GRACE_S
            )
        except asyncio.TimeoutError:
            raise DeadlineExceeded(f"{served.name} did not answer within {self._jobs.max_job_s} s") from None

    def _has_to_move(self, work: Work, served: Served) -> bool:
        """Whether the job belongs into its workload's lane: that is full here, or keeps an order."""
        if work.lane == lane_of(served.name):
            return False
        return bool(work.delivery.ordering_key) or not self._has_room(served.name, work)

    async def _forward(self, work: Work, served: Served) -> Outcome:
        delivery = work.delivery
        ours = {ORIGIN: delivery.attributes.get(ORIGIN, delivery.message_id)}
        if work.attempts:
            ours[RETRIED] = "1"
        topic = topic_of(self._jobs, lane_of(served.name))
        await self._publish(topic, fitting(Message(delivery.data, delivery.attributes, delivery.ordering_key), ours))
        return Outcome.FORWARDED

    async def _bury(self, work: Work) -> Outcome:
        """Publish the dead letter, and leave word in the store for whoever waits for the job."""
        work.phase = Phase.SETTLING
        assert work.given_up is not None
        line = error_line(work.job.identity, work.given_up.value, work.reason) if work.job is not None else b""
        if work.job is not None and work.given_up is not Outcome.CONFLICT:
            await self._store.bury(work.job.identity, line)
        if not work.announced:
            topic = topic_of(self._jobs, work.lane)
            await self._publish(self._jobs.dead_letter, dead_letter(work, topic))
            work.announced = True
        if work.job is not None and work.given_up is not Outcome.CONFLICT:
            await self._tell(work, work.job, Result(work.job.identity, work.job.sha256, line))
        return Outcome.BURIED

    async def _publish(self, topic: str, message: Message) -> None:
        publisher = self._publishers.get(topic)
        if publisher is None:
            publisher = Batcher[Message](
                lambda messages: self._edges.publish(topic, messages),
                linger_s=MESSAGE_LINGER_S,
                clock=self._clock,
            )
            self._publishers[topic] = publisher
        await publisher.add(message)

    def learn_status(self, status: Mapping[str, WorkloadStatus]) -> None:
        """The workloads are so now."""
        for name, now in status.items():
            before = self.status.get(name)
            if now.replicas and (before is None or not before.replicas):
                self._served_since[name] = self._clock.now()
        self.status = status

    def _ready(self, served: Served) -> bool:
        status = self.status.get(served.name)
        return status is not None and status.ready

    async def _is_ready(self, served: Served) -> bool:
        """Asked afresh; where that fails too, what was known last."""
        try:
            self.learn_status(await self._edges.backend.status())
        except Exception as error:
            event(_log, "status_failed", level=logging.WARNING, error=error)
        return self._ready(served)

    def _why_not_ready(self, served: Served) -> str:
        status = self.status.get(served.name)
        return f"{served.name} is not ready: {(status.message if status else '') or 'no replica runs'}"


class _Expired(Exception):
    """The job's turn came after its deadline."""


class _Overtaken(Exception):
    """When the job's turn came it had its result already."""


def dead_letter(work: Work, topic: str) -> Message:
    """The message as it came, with the reason in its attributes, the attempts and the topic that it came by."""
    assert work.given_up is not None
    delivery = work.delivery
    history = [{**asdict(one), "reason": one.reason[:100]} for one in work.attempts]
    while history and len(json.dumps(history)) > MAX_ATTRIBUTE_BYTES:
        del history[0]
    ours = {
        OUTCOME: work.given_up.value,
        SOURCE_TOPIC: topic,
        MESSAGE_ID: delivery.message_id,
        ATTEMPTS: str(len(work.attempts)),
        REASON: work.reason or work.given_up.value,
        HISTORY: json.dumps(history),
    }
    return fitting(Message(delivery.data, delivery.attributes, delivery.ordering_key), ours)


def names(work: Work) -> dict[str, Any]:
    """What a log line says about a job; never its body."""
    if work.job is None:
        return {"message_id": work.delivery.message_id}
    return {"message_id": work.delivery.message_id, "job_id": work.job.identity.job_id, **work.job.identity.attributes}
