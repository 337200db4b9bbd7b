"""One chaos run from beginning to end: start, ask, break, wait, judge, tell. See `benchmarks/chaos.py`."""

from __future__ import annotations

import asyncio
import json
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cotenant.calls import Directory
from cotenant.errors import SourceUnavailable, StoreUnavailable
from cotenant.jobs.queue.emulator import EmulatorCommand
from cotenant.jobs.store.keys import dead_key, result_key
from tests.acceptance.chaos.clients import Clients
from tests.acceptance.chaos.faults import Breaker, Fault, plan_faults
from tests.acceptance.chaos.load import make_load
from tests.acceptance.chaos.stage import Stage
from tests.acceptance.chaos.topics import Topics
from tests.acceptance.chaos.verdict import Court, Verdict, spread
from tests.acceptance.chaos.witness import Witness, engine_runs

#: An ingress that is killed may take so long over its lease until the first of its jobs is taken on elsewhere.
RECOVERY_OVER_LEASE_S = 5.0


@dataclass(frozen=True)
class Course:
    """What is asked of a run: jobs and faults over so many seconds; `settle_s` later all must be over."""

    seed: int
    jobs: int
    faults: int
    over_s: float
    settle_s: float
    lease_s: int = 10
    max_attempts: int = 10
    only: str | None = None
    """The one kind of fault, if not all."""


@dataclass(frozen=True)
class Report:
    course: Course
    verdict: Verdict
    faults: list[Fault]
    jobs: int
    kinds: Mapping[str, int]
    ways: Mapping[str, int]
    published_again: int
    unsure_bare: int
    unsettled: int
    took_s: float
    settled_after_s: float
    """From the last fault and the last job asked for, whichever came later, until every job had ended."""

    @property
    def per_s(self) -> float:
        return self.jobs / self.took_s

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        verdict = self.verdict
        told = {name: getattr(self, name) for name in ("jobs", "published_again", "unsure_bare", "unsettled", "took_s")}
        return {
            "course": asdict(self.course),
            "cpus": os.cpu_count(),
            **told,
            "kinds": dict(self.kinds),
            "ways": dict(self.ways),
            "ends": dict(verdict.ends),
            "wrongs": verdict.wrongs,
            "victims": verdict.victims,
            "repeated_messages": verdict.repeated_messages,
            "repeated_letters": verdict.repeated_letters,
            "runs": verdict.runs,
            "engine_s": verdict.engine_s,
            "wasted_s": sum(verdict.wasted_s.values()),
            "wasted_s_by_cause": dict(verdict.wasted_s),
            "wasted_runs_by_cause": dict(verdict.wasted_runs),
            "recoveries": [asdict(one) for one in verdict.recoveries],
            "jobs_per_s": self.per_s,
            "settled_after_s": self.settled_after_s,
            "faults_by_kind": Counter(fault.kind for fault in self.faults),
            "faults": [asdict(fault) for fault in sorted(self.faults, key=lambda fault: fault.began_s)],
        }


def play(course: Course, command: EmulatorCommand, console: Console, *, keep: bool = False) -> Report:
    """A run in a folder of its own, which is left behind where something is wrong."""
    folder = Path(tempfile.mkdtemp(prefix="cotenant-chaos-"))
    began = time.monotonic()

    def say(text: str) -> None:
        console.print(f"[dim]{time.monotonic() - began:7.1f} s[/] {text}")

    say(f"seed {course.seed}: {course.jobs} jobs, {course.faults} faults, in {folder}")
    stage = Stage(folder, lease_s=course.lease_s, max_attempts=course.max_attempts)
    try:
        stage.start(command, say)
        report = asyncio.run(_Play(course, stage, say).run())
        keep = keep or bool(report.verdict.wrongs)
        return report
    except BaseException:
        keep = True
        raise
    finally:
        stage.stop(keep=keep)


class _Play:
    def __init__(self, course: Course, stage: Stage, say: Any) -> None:
        self._course = course
        self._stage = stage
        self._say = say
        self._topics = Topics(stage.jobs.project)
        self._witness = Witness(stage.store, self._topics, stage.jobs.results, stage.jobs.dead_letter)
        self._clients = Clients(stage, Directory.of(stage.platform), random.Random(course.seed))

    async def run(self) -> Report:
        course, clients, say = self._course, self._clients, self._say
        await asyncio.to_thread(self._witness.start)
        breaker = Breaker(self._stage, self._topics, self._witness, clients.publish_again, clients.take_identity)
        began, began_s = time.monotonic(), time.time()
        await asyncio.gather(
            clients.run(make_load(course.seed, course.jobs, course.over_s), began),
            breaker.run(plan_faults(course.seed, course.faults, course.over_s, only=course.only), began, say),
            self._tell(),
        )
        quiet_s = time.monotonic()
        say(f"all is asked for and mended; {len(self._outstanding())} jobs are open")
        await self._wait_for_all(quiet_s + course.settle_s)
        settled_after_s = time.monotonic() - quiet_s
        batches = await self._batches(time.monotonic() + 60)
        say(f"all settled {settled_after_s:.0f} s later, or given up on; the ingresses go")
        unsettled = await asyncio.to_thread(self._unsettled)
        until_s = time.time()
        await asyncio.to_thread(self._witness.stop)
        await clients.close()
        court = Court(self._stage.store, clients.asked, self._witness, course.max_attempts)
        court.judge(batches=batches)
        runs = engine_runs(self._stage.folder)
        court.count_cost(runs, breaker.happened, until_s)
        court.count_recoveries(breaker.happened, runs, course.lease_s)
        if unsettled:
            court.verdict.wrongs.append(f"unsettled: {unsettled} messages")
        ended_s = [seen.at_s for seen in self._witness.objects.values()]
        return Report(
            course,
            court.verdict,
            breaker.happened,
            jobs=len(clients.asked),
            kinds=Counter(one.ask.kind for one in clients.asked),
            ways=Counter(one.way for one in clients.asked),
            published_again=clients.again,
            unsure_bare=clients.unsure_bare,
            unsettled=unsettled,
            took_s=max(ended_s, default=began_s) - began_s,
            settled_after_s=settled_after_s,
        )

    async def _tell(self) -> None:
        """Say now and then how it goes, until the course is over."""
        end = time.monotonic() + self._course.over_s
        while time.monotonic() < end:
            await asyncio.sleep(min(15.0, max(0.1, end - time.monotonic())))
            asked = len(self._clients.asked)
            self._say(f"[dim]{asked} asked for, {len(self._witness.objects)} results[/]")

    def _outstanding(self) -> list[str]:
        """Jobs that have neither a result nor a word of why not; malformed messages that are no dead letter yet."""
        store = self._stage.store
        dead = {letter.data for letter in self._witness.dead}
        found = []
        for one in self._clients.asked:
            if one.identity is None:
                if one.message is not None and one.message.data not in dead:
                    found.append(one.ask.custom_id)
            elif not (store / result_key(one.identity)).exists() and not (store / dead_key(one.identity)).exists():
                found.append(f"{one.identity.batch}/{one.ask.custom_id}")
        return found

    async def _wait_for_all(self, until: float) -> None:
        told = time.monotonic()
        while open_jobs := await asyncio.to_thread(self._outstanding):
            if time.monotonic() > until:
                self._say(f"[red]still open:[/] {', '.join(open_jobs[:20])}")
                return
            if time.monotonic() - told > 15:
                told = time.monotonic()
                self._say(f"[dim]{len(open_jobs)} open: {', '.join(open_jobs[:4])}[/]")
            await asyncio.sleep(0.5)

    async def _batches(self, until: float) -> list[tuple[str, Mapping[str, Any], list[Mapping[str, Any]]]]:
        """Every batch with the lines of its files, once it has ended."""
        found = []
        for tenant, batch in self._clients.batches:
            shown: Mapping[str, Any] = {}
            while True:
                try:
                    shown = await self._clients.desk.batch(tenant, batch)
                except (SourceUnavailable, StoreUnavailable):
                    shown = {"status": "unknown"}
                if shown["status"] in ("completed", "failed", "expired", "cancelled") or time.monotonic() > until:
                    break
                await asyncio.sleep(0.5)
            lines: list[Mapping[str, Any]] = []
            for name in ("output_file_id", "error_file_id"):
                if shown.get(name) is not None:
                    content = await self._clients.desk.file_content(tenant, shown[name])
                    data = b"".join([chunk async for chunk in content.chunks])
                    lines += [json.loads(line) for line in data.splitlines()]
            found.append((batch, shown, lines))
        return found

    def _unsettled(self) -> int:
        """Messages that are still in a subscription of the ingresses, when those have gone and leases are over."""
        time.sleep(self._course.lease_s)
        self._stage.remove_ingress()
        time.sleep(self._course.lease_s + 2)
        count = 0
        for name in self._topics.subscriptions(self._stage.jobs.subscription):
            left = self._topics.pull(name, wait_s=3.0, ack=False)
            if left:
                self._say(f"[red]{name} holds[/] {[(dict(one.attributes), one.data[:80]) for one in left[:3]]}")
            count += len(left)
        return count


def show(report: Report, console: Console) -> None:
    """The report as tables."""
    verdict, lease_s = report.verdict, report.course.lease_s
    cpus = os.cpu_count()
    table = Table(title=f"Chaos, seed {report.course.seed}, on {cpus} CPU cores", show_header=False)
    faults = Counter(fault.kind for fault in report.faults)
    wasted = sum(verdict.wasted_s.values())
    share = wasted / verdict.engine_s if verdict.engine_s else 0.0
    rows = [
        ("jobs", f"{report.jobs} ({_counted(report.ways)})"),
        ("kinds", _counted(report.kinds)),
        ("ended as", _counted(verdict.ends)),
        ("faults", f"{len(report.faults)} ({_counted(faults)})"),
        ("published again", f"{report.published_again} messages"),
        ("repeated", f"{verdict.repeated_messages} result messages, {verdict.repeated_letters} dead letters"),
        ("engine", f"{verdict.runs} runs, {verdict.engine_s:.0f} s, of which {wasted:.0f} s ({share:.1%}) wasted"),
        ("throughput", f"{report.per_s:.1f} jobs/s over {report.took_s:.0f} s"),
        ("all over", f"{report.settled_after_s:.0f} s after the last fault"),
        ("unsettled", str(report.unsettled)),
        ("given up by faults alone", str(verdict.victims)),
    ]
    alone = [one for one in verdict.recoveries if one.alone]
    for name, some in (("recovery", verdict.recoveries), ("recovery, nothing else broken", alone)):
        late = sum(one.first_s > lease_s + RECOVERY_OVER_LEASE_S for one in some)
        limit = f"{late} of {len(some)} over {lease_s + RECOVERY_OVER_LEASE_S:.0f} s"
        first, last = spread([one.first_s for one in some]), spread([one.last_s for one in some])
        rows.append((name, f"first of its jobs taken on {first} s (least/median/most), {limit}"))
        rows.append(("", f"last of its jobs taken on {last} s"))
    for row in rows:
        table.add_row(*row)
    console.print(table)
    causes = Table("wasted because of", "runs", "seconds")
    for cause, seconds in sorted(verdict.wasted_s.items(), key=lambda item: -item[1]):
        causes.add_row(cause, str(verdict.wasted_runs[cause]), f"{seconds:.1f}")
    console.print(causes)
    for wrong in verdict.wrongs[:40]:
        console.print(f"[red]{wrong}[/]")
    console.print("[green]everything held[/]" if not verdict.wrongs else f"[red]{len(verdict.wrongs)} wrongs[/]")


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))
