"""What must hold after a chaos test's course, whatever it was."""

from __future__ import annotations

import base64
import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cotenant.config import Jobs
from cotenant.jobs.ingress.batcher import Batcher
from cotenant.jobs.ingress.pump import Pump
from cotenant.jobs.model import Identity, Job, Result, parse_line
from cotenant.jobs.queue.memory import MemoryLanes
from cotenant.jobs.store import keys
from cotenant.outbound.delivery import InMemoryDeliver
from tests.contracts.chaos_clients import Accepted, Clients
from tests.contracts.chaos_jobs import FAIL_FOR_EVER, Sent
from tests.contracts.chaos_wires import PNG, Books, Run, Workshop


@dataclass
class Tally:
    """What a course came to."""

    jobs: int = 0
    messages: int = 0
    batches: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    wasted_runs: int = 0
    engine_s: float = 0.0
    wasted_s: float = 0.0
    repeated_of_visible: int = 0
    """Runs that began when the result was visible already."""
    repeated_messages: int = 0
    """Result messages beyond the first of a job."""
    marks_left: int = 0
    dead: Counter[str] = field(default_factory=Counter)
    virtual_s: float = 0.0
    heal_s: float = 0.0


def check_forgotten(name: str, pump: Pump) -> None:
    """A pump that has let go of everything remembers nothing of it."""
    steps = pump._steps
    left: dict[str, Any] = {
        "held": pump._held,
        "owners": steps._owners,
        "last of key": pump._last_of_key,
        "counted": {**pump._census._noted, **{w: n for w, n in pump._census._held_of_lane.items() if n}},
        "running": {w: n for w, n in steps.slots.running.items() if n},
        "publishing": [p for p in steps._publishers.values() if _pending(p)],
    }
    for workload, line in steps.slots._lines.items():
        left |= {f"{workload} waiting": line.waiting, f"{workload} here": line.share._here}
        left |= {f"{workload} charged": line.share._running}
    for lane, holding in pump._holdings.items():
        left |= {f"leases{lane}": holding._leases, f"acks{lane}": _pending(holding._acks)}
        left |= {f"abandoned{lane}": holding._abandoned}
    remembered = {what: of for what, of in left.items() if len(of)}
    assert not remembered, f"{name} still remembers {remembered}"


def _pending(batcher: Batcher[Any]) -> list[Any]:
    """What somebody still waits for; the rest was cut short by a drain and is dropped at the next flush."""
    return [item for item, flushed in batcher._pending if not flushed.done()]


@dataclass
class Verdict:
    """Everything that can be read when all has ended."""

    jobs: Jobs
    clients: Clients
    lanes: MemoryLanes
    objects: Books
    shop: Workshop
    deliver: InMemoryDeliver
    removed: set[str]
    """Workloads that were not served for a while."""
    trouble_until_s: float

    async def check(self) -> None:
        await self.check_messages()
        for run in self.shop.runs:
            self._check_cancelled(run)
        for batch in self.clients.batches:
            await self._check_batch(batch)
        for single in self.clients.singles:
            shown = await self.clients.desk.job(single.tenant, single.id)
            self._check_single(single.kind, shown, single.id)
            if single.webhook:
                assert any(single.id.encode() in posted.body for posted in self.deliver.posted), f"{single} untold"
        self._check_order()
        queued = [key for key in self.objects.objects if key.startswith(keys.QUEUED)]
        assert not queued, f"ended, and still in the queue: {queued}"

    async def check_messages(self) -> None:
        """Everything about what was published as messages."""
        dead: dict[bytes, set[str]] = defaultdict(set)
        for letter in self.lanes.topics[self.jobs.dead_letter]:
            assert "outcome" in letter.attributes, f"the queue gave up unasked: {letter}"
            dead[letter.data].add(letter.attributes["outcome"])
        told: dict[Identity, set[bytes]] = defaultdict(set)
        for message in self.lanes.topics[self.jobs.results]:
            a = message.attributes
            told[Identity(a["tenant"], a["batch"], a["custom_id"])].add(message.data)
        for identity, lines in told.items():
            result = self._result(identity)
            assert result is not None and lines == {result.line}, f"{identity} was told {lines}"
        for sent in self.clients.sent:
            if sent.kind == "malformed":
                assert dead[sent.message.data] == {"malformed"}, sent
            elif sent.job is not None:
                result = self._result(sent.job.identity)
                assert result is None or told[sent.job.identity], f"the result of {sent} was not told"
                self._check_job(sent, sent.job, result, dead[sent.message.data])

    def _check_order(self) -> None:
        """Jobs of one ordering key and lane have got their results in their order, those aside that were given up."""
        by_key: dict[tuple[str, str], list[str]] = defaultdict(list)
        for sent in self.clients.sent:
            if not sent.message.ordering_key or sent.job is None:
                continue
            if keys.dead_key(sent.job.identity) not in self.objects.objects:
                by_key[sent.message.ordering_key, sent.lane].append(sent.job.identity.job_id)
        for key, jobs in by_key.items():
            times = [self.objects.visible_at_s[job] for job in jobs if job in self.objects.visible_at_s]
            assert times == sorted(times), f"jobs of {key} ended at {times}"

    def _result(self, identity: Identity) -> Result | None:
        data = self.objects.objects.get(keys.result_key(identity))
        return None if data is None else Result.load(identity, data)

    def _check_job(self, sent: Sent, job: Job, result: Result | None, outcomes: set[str]) -> None:
        kind, job_id = sent.kind, job.identity.job_id
        assert outcomes <= {"attempts_exhausted", "unknown_workload", "conflict"}, f"{sent}: {outcomes}"
        if outcomes - {"conflict"}:
            assert keys.dead_key(job.identity) in self.objects.objects, f"{sent} left no word"
        if "attempts_exhausted" in outcomes:
            self._check_exhausted(kind, job_id)
        if "unknown_workload" in outcomes:
            assert kind == "unknown" or self.removed, f"{sent} is not unknown"
        if "conflict" in outcomes:
            assert result is not None and result.job_sha256 != job.sha256, f"{sent}: conflict with nothing else"
        if result is None or result.job_sha256 != job.sha256:
            assert outcomes, f"{sent} is lost"
            return
        line = json.loads(result.line)
        if line["response"] is not None:
            self._check_reply(kind, json.loads(job.body or b"")["nonce"], line["response"])
        elif line["error"]["code"] == "cancelled":
            assert self._cancelled(job.identity), f"nobody cancelled {sent}"
        else:
            assert line["error"]["code"] == "expired" and job.wishes.deadline_at_s is not None, line

    def _check_exhausted(self, kind: str, job_id: str) -> None:
        least = min(2, self.jobs.max_attempts) if kind == "greedy" else self.jobs.max_attempts
        assert self.shop.failed[job_id] >= least, f"{job_id} was given up after {self.shop.failed[job_id]} failures"

    def _check_reply(self, kind: str, nonce: int, response: Mapping[str, Any]) -> None:
        assert response["status_code"] == (400 if kind == "refused" else 200), response
        assert kind not in FAIL_FOR_EVER
        body = response["body"]
        if "object" in body:
            body = json.loads(self.objects.objects[body["object"].removeprefix("memory:///")])
        elif "b64_json" in body:
            body = json.loads(base64.b64decode(body["b64_json"]).removeprefix(PNG))
        assert kind == "refused" or body["nonce"] == nonce, body

    def _cancelled(self, identity: Identity) -> bool:
        at_s = self.clients.cancelled_at_s
        return identity.job_id in at_s or f"{identity.tenant}/{identity.batch}" in at_s

    def _check_cancelled(self, run: Run) -> None:
        """What is cancelled is not begun any more, and what runs of it ends; unless it was given up in between."""
        at_s = self.clients.cancelled_at_s.get(run.job_id)
        given_up = self.clients.key_of.get(run.job_id, "").replace("/results/", "/dead/") in self.objects.objects
        if at_s is not None and not run.orphan and not given_up:
            late_s = run.ended_s - max(at_s, self.trouble_until_s)
            assert late_s < 20, f"{run} ran on for {late_s:.0f} s after it was cancelled"

    def _check_single(self, kind: str, shown: Mapping[str, Any], job_id: str) -> None:
        status = shown["status"]
        code = (shown["error"] or {}).get("code")
        if status == "cancelled":
            assert job_id in self.clients.cancelled_at_s, f"nobody cancelled {job_id}"
        elif status == "failed" and code == "attempts_exhausted":
            self._check_exhausted(kind, job_id)
        elif status == "failed" and code == "unknown_workload":
            assert self.removed
        else:
            assert status == ("failed" if kind == "refused" else "succeeded"), (kind, shown)
            assert kind not in FAIL_FOR_EVER

    async def _check_batch(self, batch: Accepted) -> None:
        """Every line of the file is in one of the two files, once, and says what the job's object says."""
        shown = await self.clients.desk.batch(batch.tenant, batch.id)
        status = shown["status"]
        if status == "failed":
            assert self.removed, shown
            return
        cancelled = f"{batch.tenant}/{batch.id}" in self.clients.cancelled_at_s
        assert status == "completed" or (status == "cancelled" and cancelled), shown
        if shown["output_file_id"] is None and shown["error_file_id"] is None:
            assert cancelled, shown
            return
        lines = {}
        for name in ("output_file_id", "error_file_id"):
            for line in await self._lines(batch.tenant, shown[name]):
                assert line["custom_id"] not in lines, f"{line['custom_id']} of {batch.id} is told twice"
                lines[line["custom_id"]] = line
        assert lines.keys() == batch.lines.keys(), f"{batch.id} lacks {batch.lines.keys() - lines.keys()}"
        for custom_id, (kind, asked) in batch.lines.items():
            self._check_line(batch, kind, asked, lines[custom_id])

    def _check_line(self, batch: Accepted, kind: str, asked: Mapping[str, Any], line: Mapping[str, Any]) -> None:
        job = parse_line(json.dumps(asked).encode(), tenant=batch.tenant, batch=batch.id)
        result = self._result(job.identity)
        if line["response"] is not None:
            assert result is not None and json.loads(result.line) == line, f"{job.identity}: {line}"
            self._check_reply(kind, asked["body"]["nonce"], line["response"])
            return
        code = line["error"]["code"]
        if code == "attempts_exhausted":
            self._check_exhausted(kind, job.identity.job_id)
        elif code == "unknown_workload":
            assert self.removed
        else:
            assert code == "batch_cancelled" and self._cancelled(job.identity), line

    async def _lines(self, tenant: str, file_id: str | None) -> list[dict[str, Any]]:
        if file_id is None:
            return []
        content = await self.clients.desk.file_content(tenant, file_id)
        data = b"".join([chunk async for chunk in content.chunks])
        return [json.loads(line) for line in data.splitlines()]

    def tally(self, faults: Counter[str], *, virtual_s: float, heal_s: float) -> Tally:
        identities = {sent.job.identity for sent in self.clients.sent if sent.job is not None}
        lines = sum(len(batch.lines) for batch in self.clients.batches)
        tally = Tally(
            jobs=len(identities) + lines + len(self.clients.singles),
            messages=len(self.clients.sent),
            batches=len(self.clients.batches),
            faults=faults,
            virtual_s=virtual_s,
            heal_s=heal_s,
            marks_left=sum(key.startswith(keys.CANCELLED) for key in self.objects.objects),
        )
        needed: set[str] = set()
        for run in self.shop.runs:
            tally.runs += 1
            tally.engine_s += run.ended_s - run.began_s
            good = run.reply is not None and run.reply < 500 and run.reply != 429
            if good and run.job_id not in needed:
                needed.add(run.job_id)
                continue
            tally.wasted_runs += 1
            tally.wasted_s += run.ended_s - run.began_s
            at_s = self.objects.visible_at_s.get(run.job_id)
            tally.repeated_of_visible += at_s is not None and run.began_s > at_s
        told = Counter((m.attributes["batch"], m.attributes["custom_id"]) for m in self.lanes.topics[self.jobs.results])
        tally.repeated_messages = sum(count - 1 for count in told.values())
        tally.dead = Counter(m.attributes["outcome"] for m in self.lanes.topics[self.jobs.dead_letter])
        return tally
