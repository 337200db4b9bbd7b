"""Several pumps on the same lanes, with everything going wrong that can, in virtual time; and what must hold after.

A test does steps: publish, let time pass, break something. `heal` then mends everything, waits until the queue is
empty and checks: no job is lost, no result ever changed, every result message says what the result object says, every
dead letter is deserved, nothing stays unsettled, and no pump remembers anything of what it has let go.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cotenant.calls import Directory, Served
from cotenant.config import Jobs
from cotenant.errors import MalformedJob, SourceUnavailable, StoreUnavailable
from cotenant.jobs import keys
from cotenant.jobs.errand import Errand
from cotenant.jobs.lanes import CLERK, MAIN, lane_of, topic_of
from cotenant.jobs.memory import MemoryLanes
from cotenant.jobs.model import Identity, Job, Result, Wishes, parse_job
from cotenant.jobs.objects import MemoryObjects
from cotenant.jobs.pump import Pump
from cotenant.jobs.records import JobRecord, Records
from cotenant.jobs.source import Message
from cotenant.jobs.store import ResultStore
from tests.contracts.chaos_wires import (
    OWNER,
    PNG,
    LoopClock,
    Run,
    Tasks,
    Weather,
    Wire,
    WiredBackend,
    WiredLanes,
    WiredObjects,
    Workshop,
)

DIRECTORY = Directory(
    (
        Served("writer", "llm", models=("tiny", "writer"), slots=4, deadline_s=30),
        Served("mockups", "mockup", templates=("mug",), slots=2, deadline_s=30),
    )
)
INGRESSES = 2
JOBS = Jobs(lease_s=10, max_attempts=3, look_ahead=2, ingresses=INGRESSES, max_job_s=50, drain_s=10)
LARGE = 1 << 20

#: What jobs there are: seconds that a run takes at the least and most, and how the first, second, … run ends.
KINDS: Mapping[str, tuple[tuple[float, float], tuple[Any, ...]]] = {
    "quick": ((0.0, 0.3), ()),
    "steady": ((0.5, 4.0), ()),
    "long": ((12.0, 45.0), ()),
    "refused": ((0.0, 0.2), (400,)),
    "shaky": ((0.0, 2.0), (500, 200)),
    "crashing": ((0.0, 2.0), ("crash", 200)),
    "deadly": ((0.5, 2.0), ("die", 200)),
    "greedy": ((0.5, 1.0), ("over", 200)),
    "crowded": ((0.0, 0.2), ("full", 429, "full", 429, 200)),
    "hopeless": ((0.0, 1.0), (500,)),
    "endless": ((0.0, 0.0), ("endless",)),
    "large": ((0.0, 0.5), ()),
    "unknown": ((0.0, 0.0), ()),
    "malformed": ((0.0, 0.0), ()),
}
_FAILS_FOR_EVER = {"hopeless", "endless"}


@dataclass(frozen=True)
class Sent:
    """A message that was published, and what kind of job it carries."""

    message: Message
    lane: str
    kind: str
    job: Job | None


@dataclass
class Ingress:
    """A pump, its wire and the clerk's ear at it."""

    name: str
    pump: Pump
    wire: Wire
    ending: asyncio.Task[None] | None = None
    ended: bool = False


@dataclass
class Tally:
    """What a run of the house came to."""

    jobs: int = 0
    messages: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    wasted_runs: int = 0
    engine_s: float = 0.0
    wasted_s: float = 0.0
    repeated_of_visible: int = 0
    """Runs that began when the result was visible already."""
    repeated_messages: int = 0
    """Result messages beyond the first of a job."""
    dead: Counter[str] = field(default_factory=Counter)
    virtual_s: float = 0.0
    heal_s: float = 0.0


class Books(MemoryObjects):
    """The store, which watches over what must never change."""

    def __init__(self, clock: LoopClock) -> None:
        super().__init__()
        self.visible_at_s: dict[str, float] = {}
        self._clock = clock

    async def create(self, key: str, data: bytes) -> bool:
        done = await super().create(key, data)
        if done and "/results/" in key:
            self.visible_at_s[key] = self._clock.now()
        return done

    async def put(self, key: str, data: bytes) -> None:
        assert "/results/" not in key, f"{key} was written over"
        await super().put(key, data)

    async def delete(self, keys: Any) -> None:
        keys = list(keys)
        assert not [key for key in keys if "/results/" in key], f"a result was deleted: {keys}"
        await super().delete(keys)


class ChaosHouse:
    """See the module's docstring. Lives in one event loop in virtual time."""

    def __init__(self, seed: int, jobs: Jobs = JOBS, directory: Directory = DIRECTORY) -> None:
        self.rng = random.Random(seed)
        self._loop = asyncio.get_running_loop()
        self.clock = LoopClock(self._loop)
        self.tasks = Tasks(self._loop)
        self.jobs = jobs
        self.directory = directory
        self.lanes = MemoryLanes(jobs, clock=self.clock, pull_wait_s=4.0)
        self.home = self.lanes.open(MAIN)
        self.objects = Books(self.clock)
        self.store = ResultStore(self.objects)
        self.weather = Weather(self.rng)
        slots = {served.name: -(-served.slots // INGRESSES) for served in directory.workloads}
        self.shop = Workshop(slots, self.rng)
        self.ingresses: list[Ingress] = []
        self.sent: list[Sent] = []
        self.cancelled_at_s: dict[str, float] = {}
        """When a job, or all of `tenant/batch`, was cancelled."""
        self.trouble_until_s = 0.0
        self.removed: set[str] = set()
        self.batch_of: dict[str, str] = {}
        self.told: Counter[str] = Counter()
        self.looks: Counter[str] = Counter()
        self.errands = 0
        self.faults: Counter[str] = Counter()
        self.numbers = iter(range(1, 1_000_000))
        self.served = directory
        self.repairs: list[tuple[asyncio.TimerHandle, Callable[[], None]]] = []
        self.lane_names = [MAIN, CLERK, *(lane_of(served.name) for served in directory.workloads)]
        for lane in self.lane_names:
            self.lanes.open(lane)
        for _ in range(INGRESSES):
            self.start_ingress()

    # --- ingresses ---

    def start_ingress(self) -> None:
        name = f"pump{next(self.numbers)}"
        wire = Wire(self.weather)
        pump = Pump(
            self.jobs,
            WiredLanes(self.lanes, wire),
            ResultStore(WiredObjects(self.objects, wire)),
            WiredBackend(self.shop, name, wire),
            self.served,
            clerk=_Ear(self, wire),
            clock=self.clock,
        )
        self.ingresses.append(Ingress(name, pump, wire))
        self._as(name, pump.start)

    def _as(self, name: str, start: Any) -> Any:
        before = OWNER.set(name)
        try:
            return start()
        finally:
            OWNER.reset(before)

    async def kill_ingress(self, index: int, *, back_after_s: float = 2.0) -> None:
        living = self._living()
        if not living:
            return
        self.faults["ingress killed"] += 1
        ingress = living[index % len(living)]
        ingress.wire.cut = ingress.ended = True
        await self.tasks.kill(ingress.name)
        ingress.ending = None
        self._later(back_after_s, self.start_ingress)

    async def redeploy_ingress(self, index: int, *, first_the_new: bool = False, drain_s: float = 10.0) -> None:
        staying = [ingress for ingress in self._living() if ingress.ending is None]
        if not staying:
            return
        self.faults["ingress redeployed"] += 1
        ingress = staying[index % len(staying)]
        if first_the_new:
            self.start_ingress()
        ingress.ending = self._as(ingress.name, lambda: asyncio.ensure_future(self._drain(ingress, drain_s)))
        if not first_the_new:
            ingress.ending.add_done_callback(lambda _: self._later(1.0, self.start_ingress))

    async def _drain(self, ingress: Ingress, drain_s: float) -> None:
        began = self.clock.now()
        # Who could not give a message back in an outage left it to its lease.
        calm = began > self.trouble_until_s + self.jobs.lease_s
        await ingress.pump.drain(drain_s)
        took = self.clock.now() - began
        leased = {(lane, ack_id) for lane in self.lane_names for ack_id in self.lanes.open(lane)._leased}
        if calm and self.trouble_until_s < began:
            kept = leased & ingress.wire.pulled
            assert not kept, f"{ingress.name} did not hand back {kept}"
        assert took <= max(drain_s, 15.0) + 30.0, f"{ingress.name} took {took:.0f} s to drain within {drain_s:.0f} s"
        ingress.ended = True
        self._check_forgotten(ingress)

    def _living(self) -> list[Ingress]:
        return [ingress for ingress in self.ingresses if not ingress.ended]

    # --- what is published ---

    async def publish(
        self,
        kind: str,
        count: int = 1,
        *,
        own_lane: bool = False,
        tenant: str = "acme",
        batch: str = "b1",
        bare: bool = False,
        wishes: Wishes | None = None,
    ) -> None:
        """`bare` messages say nothing but the line; `own_lane` ones go to their workload's lane."""
        for _ in range(count):
            attributes = {"tenant": tenant, "batch": batch, **(wishes or Wishes()).attributes}
            await self._publish(self._message(kind, own_lane, {} if bare else attributes))

    def _know(self, job: Job) -> None:
        self.shop.key_of[job.identity.job_id] = keys.result_key(job.identity)
        self.batch_of[job.identity.job_id] = _batch(job.identity)

    def _message(self, kind: str, own_lane: bool, attributes: Mapping[str, str]) -> Sent:
        number = next(self.numbers)
        low, high = KINDS[kind][0]
        workload = self.rng.choice(["writer", "mockups"])
        lane = lane_of(workload) if own_lane else MAIN
        if kind == "malformed":
            return Sent(Message(b'{"custom_id": "m%d"' % number, attributes), lane, kind, None)
        body: dict[str, Any] = {"seconds": round(self.rng.uniform(low, high), 3), "nonce": number}
        if KINDS[kind][1]:
            body["endings"] = KINDS[kind][1]
        if kind == "large":
            workload, lane, body["pad"] = "writer", lane_of("writer") if own_lane else MAIN, LARGE
        body |= {"model": "tiny"} if workload == "writer" else {"template": "mug"}
        if kind == "unknown":
            body = {"model": "nobody", "nonce": number}
        url = "/v1/mockups" if "template" in body else "/v1/chat/completions"
        data = json.dumps({"custom_id": f"{kind}{number}", "method": "POST", "url": url, "body": body}).encode()
        return Sent(Message(data, attributes), lane, kind, parse_job(data, attributes, "") if attributes else None)

    async def _publish(self, sent: Sent) -> None:
        """As a publisher does: again and again until it worked, so a message may be there twice."""
        self.sent.append(sent)
        if sent.job is not None:
            self._know(sent.job)
        lane = self.lanes.open(sent.lane)
        topic = topic_of(self.jobs, sent.lane)
        while True:
            try:
                (message_id,) = await lane.publish(topic, [sent.message])
            except SourceUnavailable:
                await asyncio.sleep(1)
                continue
            if sent.job is None and sent.kind in KINDS and sent.kind != "malformed":
                # A message without a batch is its own batch, by its id.
                job = parse_job(sent.message.data, sent.message.attributes, message_id)
                self.sent[self.sent.index(sent)] = replace(sent, job=job)
                self._know(job)
            return

    async def publish_again(self, which: Sequence[int], *, at_once: bool = False) -> None:
        """Duplicates of what was published before, by its own lane or another."""
        known = [sent for sent in self.sent if sent.job is not None and sent.message.attributes]
        if not known:
            return
        self.faults["published again"] += len(which)
        again = [known[index % len(known)] for index in which]
        for one in again:
            for _ in range(3 if at_once else 1):
                await self._publish(replace(one, lane=self.rng.choice([MAIN, one.lane])))

    async def publish_another_body(self, index: int) -> None:
        """Another job under an identity that is taken."""
        known = [sent for sent in self.sent if sent.job is not None and sent.message.attributes]
        if not known:
            return
        self.faults["identity taken"] += 1
        one = known[index % len(known)]
        line = json.loads(one.message.data)
        line["body"] = {**line["body"], "nonce": next(self.numbers)}
        data = json.dumps(line).encode()
        job = parse_job(data, one.message.attributes, "")
        await self._publish(Sent(replace(one.message, data=data), one.lane, one.kind, job))

    async def submit_single(self, kind: str, webhook: bool) -> None:
        """A job submitted by itself: a record, a place in the queue, a message."""
        wishes = Wishes(queued_at_s=self.clock.unix_s(), webhook="https://example.com/hook" if webhook else None)
        attributes = {"tenant": "acme", "batch": f"single{next(self.numbers)}", **wishes.attributes}
        sent = self._message(kind, True, attributes)
        if sent.job is None or kind == "unknown":
            return
        workload = "writer" if sent.lane == lane_of("writer") else "mockups"
        now = self.clock.unix_s()
        record = JobRecord(sent.job.identity, sent.job.url, workload, now, sent.job.sha256, wishes)
        try:
            await Records(self.objects).create_job(record)
        except StoreUnavailable:
            return
        await self._publish(sent)

    async def send_errands(self, count: int) -> None:
        for _ in range(count):
            self.errands += 1
            errand = Errand("batch", "acme", f"errand{self.errands}")
            await self._publish(Sent(errand.message(), CLERK, "errand", None))

    async def cancel(self, index: int, *, batch: bool = False) -> None:
        known = [sent.job.identity for sent in self.sent if sent.job is not None and sent.message.attributes]
        if not known or self.objects.down:
            return
        self.faults["cancelled"] += 1
        identity = known[index % len(known)]
        if batch:
            await self.store.cancel_batch(identity.tenant, identity.batch)
        else:
            await self.store.cancel(identity)
        self.cancelled_at_s.setdefault(_batch(identity) if batch else identity.job_id, self.clock.now())

    def _cancelled_at_s(self, identity: Identity) -> float | None:
        times = [self.cancelled_at_s.get(name) for name in (identity.job_id, _batch(identity))]
        return min((at_s for at_s in times if at_s is not None), default=None)

    # --- what goes wrong ---

    def kill_replica(self, workload: str) -> None:
        self.faults["replica killed"] += 1
        self.shop.kill_replica(workload)

    def redeploy_workload(self, workload: str, down_s: float, *, hard: bool) -> None:
        self.faults["workload redeployed"] += 1
        floor = self.shop.floors[workload]
        floor.ready = False
        if hard:
            self.shop.kill_replica(workload)
        self._later(down_s, lambda: setattr(floor, "ready", True))

    def silence_controller(self, down_s: float, *, hangs: bool) -> None:
        self.faults["controller killed"] += 1
        self.shop.told_down_until_s, self.shop.hangs = self.clock.now() + down_s, hangs
        self._trouble(down_s)

    def break_store(self, down_s: float) -> None:
        self.faults["store down"] += 1
        self.objects.down = True
        self._later(down_s, lambda: setattr(self.objects, "down", False))

    def break_source(self, what: str, down_s: float) -> None:
        """`what` is results, dead, jobs or a lane's subscription or topic by its full name."""
        self.faults["source down"] += 1
        self.lanes.down.add(what)
        self._later(down_s, lambda: self.lanes.down.discard(what))

    def storm(self, for_s: float, *, source_lost: float, store_lost: float, slow: float) -> None:
        self.faults["storm"] += 1
        weather = self.weather
        weather.source_lost, weather.store_lost, weather.slow = source_lost, store_lost, slow
        self._later(for_s, self._calm)

    def remove_workload(self, workload: str, for_s: float) -> None:
        """The platform serves without it for a while."""
        self.faults["workload removed"] += 1
        self.removed.add(workload)
        self._serve(tuple(served for served in self.directory.workloads if served.name != workload))
        self._later(for_s, lambda: self._serve(self.directory.workloads))

    def _serve(self, workloads: tuple[Served, ...]) -> None:
        self.served = Directory(workloads)
        for ingress in self._living():
            self._as(ingress.name, lambda ingress=ingress: ingress.pump.reconfigure(self.served))

    def _calm(self) -> None:
        self.weather.source_lost = self.weather.store_lost = self.weather.slow = 0.0

    def _trouble(self, seconds: float) -> None:
        self.trouble_until_s = max(self.trouble_until_s, self.clock.now() + seconds)

    def _later(self, seconds: float, repair: Callable[[], None]) -> None:
        self._trouble(seconds)
        self.repairs.append((self._loop.call_later(seconds, repair), repair))

    # --- the end ---

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self._check_loops()

    async def heal(self) -> Tally:
        """Mend everything, wait until all is settled, check, and stop the pumps."""
        for timer, repair in self.repairs:
            if timer.when() > self.clock.now():
                timer.cancel()
                repair()
        self._calm()
        self.objects.down = False
        self.lanes.down.clear()
        self.shop.told_down_until_s = 0.0
        for floor in self.shop.floors.values():
            floor.ready = True
        self._serve(self.directory.workloads)
        for ingress in self.ingresses:
            if ingress.ending is not None:
                await ingress.ending
        while len(self._living()) < INGRESSES:
            self.start_ingress()
        began = self.clock.now()
        limit_s = 600 + 30 * len(self.sent)
        while self.lanes.unsettled or any(not _idle(ingress.pump) for ingress in self._living()):
            assert self.clock.now() - began < limit_s, f"not settled {limit_s} s after all was well: {self._why()}"
            await self.pass_time(2)
        heal_s = self.clock.now() - began
        await self.pass_time(2 * self.jobs.lease_s)
        assert self.lanes.unsettled == 0
        for ingress in self._living():
            self._check_forgotten(ingress)
        for ingress in self._living():
            await self._as(ingress.name, lambda ingress=ingress: asyncio.ensure_future(self._drain(ingress, 1)))
            await self.tasks.kill(ingress.name)
        await self.tasks.kill("")
        self._check_jobs()
        return self._tally(heal_s)

    def _why(self) -> str:
        return "; ".join(f"{ingress.name}: {ingress.pump.stats()}" for ingress in self._living())

    def _check_loops(self) -> None:
        assert not self.shop.wrongs, self.shop.wrongs
        most = sum(slots + self.jobs.look_ahead for slots in self.shop.slots.values())
        for ingress in self._living():
            undone = sum(work.undone for work in ingress.pump._held.values())
            if not self.removed:
                assert undone <= 3 * most, f"{ingress.name} hoards {undone} jobs"
            if ingress.ending is None:
                assert ingress.pump.stuck() is None, ingress.pump.stuck()
            elif ingress.ending.done():
                ingress.ending.result()

    def _check_forgotten(self, ingress: Ingress) -> None:
        """Nothing of what was let go is remembered."""
        pump, name = ingress.pump, ingress.name
        left: dict[str, Any] = {
            "held": pump._held,
            "owners": pump._steps._owners,
            "last of key": pump._last_of_key,
            "running": {w: n for w, n in pump._steps.slots.running.items() if n},
            "publishing": [p for p in pump._steps._publishers.values() if p._pending],
        }
        for workload, line in pump._steps.slots._lines.items():
            left |= {f"{workload} waiting": line.waiting, f"{workload} here": line.share._here}
            left |= {f"{workload} charged": line.share._running}
        for lane, holding in pump._holdings.items():
            left |= {f"leases{lane}": holding._leases, f"acks{lane}": holding._acks._pending}
            left |= {f"abandoned{lane}": holding._abandoned}
        remembered = {what: of for what, of in left.items() if len(of)}
        assert not remembered, f"{name} still remembers {remembered}"

    def _check_jobs(self) -> None:
        dead: dict[bytes, list[Message]] = defaultdict(list)
        for letter in self.lanes.topics[self.jobs.dead_letter]:
            assert "outcome" in letter.attributes, f"the queue gave up unasked: {letter}"
            dead[letter.data].append(letter)
        lines: dict[Identity, set[bytes]] = defaultdict(set)
        for message in self.lanes.topics[self.jobs.results]:
            a = message.attributes
            lines[Identity(a["tenant"], a["batch"], a["custom_id"])].add(message.data)
        by_identity: dict[Identity, list[Sent]] = defaultdict(list)
        for sent in self.sent:
            if sent.job is not None:
                by_identity[sent.job.identity].append(sent)
            elif sent.kind == "malformed":
                assert {m.attributes["outcome"] for m in dead[sent.message.data]} == {"malformed"}, sent
        for run in self.shop.runs:
            self._check_cancelled(run)
        for identity, all_sent in by_identity.items():
            data = self.objects.objects.get(keys.result_key(identity))
            result = None if data is None else Result.load(identity, data)
            assert lines[identity] == ({result.line} if result else set()), f"{identity}: messages {lines[identity]}"
            for sent in all_sent:
                self._check_job(sent, result, {m.attributes["outcome"] for m in dead[sent.message.data]})
        for n in range(1, self.errands + 1):
            assert self.looks[f"errand{n}"] >= 3
        queued = [key for key in self.objects.objects if key.startswith(keys.QUEUED)]
        assert not queued, f"ended, and still in the queue: {queued}"

    def _check_cancelled(self, run: Run) -> None:
        """What is cancelled is not begun any more, and what runs of it ends."""
        times = [self.cancelled_at_s.get(name) for name in (run.job_id, self.batch_of.get(run.job_id, ""))]
        for at_s in times:
            if at_s is not None and not run.orphan:
                late_s = run.ended_s - max(at_s, self.trouble_until_s)
                assert late_s < 20, f"{run} ran on for {late_s:.0f} s after it was cancelled"

    def _check_job(self, sent: Sent, result: Result | None, outcomes: set[str]) -> None:
        job, kind = sent.job, sent.kind
        assert job is not None
        job_id = job.identity.job_id
        if outcomes - {"conflict"}:
            assert keys.dead_key(job.identity) in self.objects.objects, f"{job.identity} left no word"
        if "attempts_exhausted" in outcomes:
            least = min(2, self.jobs.max_attempts) if kind == "greedy" else self.jobs.max_attempts
            assert self.shop.failed[job_id] >= least, f"{sent} was given up after {self.shop.failed[job_id]} failures"
        if "unknown_workload" in outcomes:
            assert kind == "unknown" or self.removed, f"{sent} is not unknown"
        if "conflict" in outcomes:
            assert result is not None, f"{sent}: conflict with nothing"
        assert outcomes <= {"attempts_exhausted", "unknown_workload", "conflict"}, f"{sent}: {outcomes}"
        if result is None or result.job_sha256 != job.sha256:
            assert outcomes, f"{sent} is lost"
            if result is not None:
                assert outcomes & {"conflict", "attempts_exhausted", "unknown_workload"}, f"{sent}: {outcomes}"
            return
        assert "conflict" not in outcomes, f"{sent} was its own conflict"
        line = json.loads(result.line)
        if line["response"] is None:
            code = line["error"]["code"]
            if code == "cancelled":
                assert self._cancelled_at_s(job.identity) is not None
            else:
                assert code == "expired" and job.wishes.deadline_at_s is not None
        else:
            assert line["response"]["status_code"] == (400 if kind == "refused" else 200), line
            assert kind not in _FAILS_FOR_EVER
            self._check_reply(job, line["response"]["body"])
        if job.wishes.webhook is not None:
            assert self.told[job_id], f"the webhook of {job.identity} was not told"

    def _check_reply(self, job: Job, body: Any) -> None:
        if "object" in body:
            body = json.loads(self.objects.objects[body["object"].removeprefix("memory:///")])
        elif "b64_json" in body:
            body = json.loads(base64.b64decode(body["b64_json"]).removeprefix(PNG))
        if "nonce" in body:
            assert body["nonce"] == json.loads(job.body or b"")["nonce"]

    def _tally(self, heal_s: float) -> Tally:
        identities = {sent.job.identity: sent for sent in self.sent if sent.job is not None}
        visible = {i.job_id: self.objects.visible_at_s.get(keys.result_key(i)) for i in identities}
        needed: set[str] = set()
        tally = Tally(jobs=len(identities), messages=len(self.sent), faults=self.faults, heal_s=heal_s)
        for run in self.shop.runs:
            tally.runs += 1
            tally.engine_s += run.ended_s - run.began_s
            at_s = visible.get(run.job_id)
            good = run.reply is not None and run.reply < 500 and run.reply != 429
            if good and run.job_id not in needed:
                needed.add(run.job_id)
                continue
            tally.wasted_runs += 1
            tally.wasted_s += run.ended_s - run.began_s
            tally.repeated_of_visible += at_s is not None and run.began_s > at_s
        messages = Counter(m.attributes["custom_id"] for m in self.lanes.topics[self.jobs.results])
        tally.repeated_messages = sum(count - 1 for count in messages.values())
        tally.dead = Counter(m.attributes["outcome"] for m in self.lanes.topics[self.jobs.dead_letter])
        tally.virtual_s = self.clock.now()
        return tally


def _batch(identity: Identity) -> str:
    return f"{identity.tenant}/{identity.batch}"


def _idle(pump: Pump) -> bool:
    stats = pump.stats()
    return not (stats.waiting or stats.running or stats.settling)


class _Ear:
    """A clerk that takes three looks at each errand, and remembers whose end it was told of."""

    def __init__(self, house: ChaosHouse, wire: Wire) -> None:
        self._house = house
        self._wire = wire

    async def advance(self, errand: Errand) -> float | None:
        await self._wire.ask(self._nothing, "store", StoreUnavailable)
        if not errand.id.startswith("errand"):
            raise MalformedJob("no such errand")
        self._house.looks[errand.id] += 1
        return None if self._house.looks[errand.id] >= 3 else self._house.rng.uniform(0.5, 15.0)

    async def job_ended(self, job: Job, result: Result) -> None:
        await self._wire.ask(self._nothing, "source", SourceUnavailable)
        self._house.told[job.identity.job_id] += 1

    async def _nothing(self) -> None:
        return None
