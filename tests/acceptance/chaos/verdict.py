"""What a chaos run came to: what was broken of what must hold, and what it cost."""

from __future__ import annotations

import base64
import hashlib
import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cotenant.jobs.model import Identity, Result
from cotenant.jobs.store.keys import dead_key, result_key
from tests.acceptance.chaos.clients import Asked
from tests.acceptance.chaos.faults import Fault
from tests.acceptance.chaos.load import Ask
from tests.acceptance.chaos.witness import EngineRun, Witness

#: A run that was wasted is laid to the last fault that began so long before its end, at the most.
_BLAMED_FOR_S = 30.0
_PNG = b"\x89PNG"


@dataclass
class Recovery:
    """From the SIGKILL of an ingress to the end of the first and of the last job that it had held."""

    first_s: float
    last_s: float
    jobs: int
    alone: bool
    """Whether nothing else was broken until then."""
    jobs_s: Mapping[str, float]
    """Of each job, by its name: when it was taken on."""


@dataclass
class Verdict:
    """`wrongs` says what does not hold; empty is what is wanted."""

    wrongs: list[str] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)
    """Jobs by how they ended: a status, an error's code, or `dead:` and its outcome."""
    victims: int = 0
    """Jobs that were given up because faults of the test killed every attempt at them."""
    repeated_messages: int = 0
    repeated_letters: int = 0
    runs: int = 0
    engine_s: float = 0.0
    wasted_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Seconds of runs that gave no result, by what they are laid to."""
    wasted_runs: Counter[str] = field(default_factory=Counter)
    recoveries: list[Recovery] = field(default_factory=list)


class Court:
    """Judges a run by what was asked for, what is in the store, and what was seen."""

    def __init__(self, store: Path, asked: Sequence[Asked], witness: Witness, max_attempts: int) -> None:
        self._store = store
        self._asked = asked
        self._witness = witness
        self._max_attempts = max_attempts
        self._letters: dict[bytes, list[Mapping[str, str]]] = defaultdict(list)
        for letter in witness.dead:
            self._letters[letter.data].append(letter.attributes)
        self.verdict = Verdict()

    def judge(self, *, batches: Iterable[tuple[str, Mapping[str, Any], Sequence[Mapping[str, Any]]]]) -> Verdict:
        """`batches`: the id, the batch object and the lines of both files of each batch that was accepted."""
        wrong = self.verdict.wrongs.append
        for path in self._witness.changed:
            wrong(f"changed: {path}")
        for letters in self._letters.values():
            if any("outcome" not in letter for letter in letters):
                wrong(f"the queue gave up unasked: {letters}")
        groups: dict[Identity, list[Asked]] = defaultdict(list)
        for asked in self._asked:
            if asked.identity is None:
                self._judge_malformed(asked)
            else:
                groups[asked.identity].append(asked)
        for identity, some in groups.items():
            self._judge_identity(identity, some)
        for batch, shown, lines in batches:
            self._judge_batch(batch, shown, lines)
        self.verdict.repeated_messages = sum(count - 1 for count in self._witness.told_count.values())
        self.verdict.repeated_letters = sum(len(letters) - 1 for letters in self._letters.values())
        return self.verdict

    def _result(self, identity: Identity) -> Result | None:
        try:
            return Result.load(identity, (self._store / result_key(identity)).read_bytes())
        except FileNotFoundError:
            return None

    def _judge_malformed(self, asked: Asked) -> None:
        assert asked.message is not None
        outcomes = {letter["outcome"] for letter in self._letters.get(asked.message.data, [])}
        self.verdict.ends["dead:malformed"] += 1
        if outcomes != {"malformed"}:
            self.verdict.wrongs.append(f"lost: malformed {asked.ask.custom_id} ended as {outcomes}")

    def _judge_identity(self, identity: Identity, some: Sequence[Asked]) -> None:
        """One result or one dead letter for each, as its kind says."""
        result = self._result(identity)
        told = self._witness.told.get(identity, set())
        line_hash = hashlib.sha256(result.line).hexdigest() if result is not None else ""
        if told - {line_hash}:
            self.verdict.wrongs.append(f"told twice: {identity} was told something that is not its result")
        for asked in some:
            self._judge(asked, identity, result)

    def _judge(self, asked: Asked, identity: Identity, result: Result | None) -> None:
        ask, job = asked.ask, asked.job
        assert job is not None
        letters = self._letters.get(asked.message.data, []) if asked.message is not None else self._letters_of(identity)
        outcomes = {letter["outcome"] for letter in letters}
        mine = result if result is not None and result.job_sha256 == job.sha256 else None
        if mine is None:
            self._judge_dead(asked, identity, outcomes, result)
            return
        if outcomes - {"attempts_exhausted"}:
            self.verdict.wrongs.append(f"twice: {identity} has a result and dead letters {outcomes}")
        line = json.loads(mine.line)
        problem = _line_problem(ask, line)
        if problem:
            self.verdict.wrongs.append(f"wrong: {identity}: {problem}")
        self.verdict.ends[str(line["response"]["status_code"]) if line["response"] else line["error"]["code"]] += 1

    def _letters_of(self, identity: Identity) -> list[Mapping[str, str]]:
        """The dead letters of a job whose message was published by the platform."""
        wanted = identity.attributes
        return [a for some in self._letters.values() for a in some if wanted.items() <= a.items()]

    def _judge_dead(self, asked: Asked, identity: Identity, outcomes: set[str], result: Result | None) -> None:
        kind = asked.ask.kind
        wanted = {"hopeless": "attempts_exhausted", "unknown": "unknown_workload", "another": "conflict"}.get(kind)
        if not outcomes:
            self.verdict.wrongs.append(f"lost: {identity} ({kind}, by {asked.way}) has no result and no dead letter")
            return
        self.verdict.ends[f"dead:{'+'.join(sorted(outcomes))}"] += 1
        if "conflict" in outcomes and result is None:
            self.verdict.wrongs.append(f"wrong: {identity} is a conflict with nothing")
        elif outcomes == {"attempts_exhausted"} and kind != "hopeless":
            self.verdict.victims += 1
        elif outcomes not in ({wanted}, {"conflict"}):
            self.verdict.wrongs.append(f"wrong: {identity} ({kind}) is a dead letter: {outcomes}")
        if outcomes != {"conflict"} and not (self._store / dead_key(identity)).exists():
            self.verdict.wrongs.append(f"wrong: {identity} left no word")

    def _judge_batch(self, batch: str, shown: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> None:
        wanted = {one.ask.custom_id for one in self._asked if one.way == "batch" and one.ask.batch == batch}
        if shown["status"] != "completed":
            self.verdict.wrongs.append(f"batch {batch} is {shown['status']}: {shown['errors']}")
            return
        told = Counter(str(line["custom_id"]) for line in lines)
        if told != Counter(wanted):
            self.verdict.wrongs.append(f"batch {batch}: its files tell of {told - Counter(wanted)} too often or not")

    # --- what it cost ---

    def count_cost(self, runs: Sequence[EngineRun], faults: Sequence[Fault], until_s: float) -> None:
        """Every run but one good one of each job was wasted; which fault it is laid to."""
        deaths = {fault.pid: fault for fault in faults if fault.pid is not None}
        needed: set[str] = set()
        for run in sorted(runs, key=lambda run: run.ended_s or until_s):
            death = deaths.get(run.pid)
            ended_s = run.ended_s or (death.began_s if death is not None else run.began_s)
            seconds = max(0.0, ended_s - run.began_s)
            self.verdict.runs += 1
            self.verdict.engine_s += seconds
            if run.status is not None and run.status < 500 and run.job not in needed:
                needed.add(run.job)
                continue
            cause = _cause(run, ended_s, death, faults)
            self.verdict.wasted_s[cause] += seconds
            self.verdict.wasted_runs[cause] += 1

    def count_recoveries(self, faults: Sequence[Fault], runs: Sequence[EngineRun], lease_s: float) -> None:
        """When the jobs of a killed ingress were taken on again: worked on elsewhere, or seen to have a result."""
        begun: dict[str, list[float]] = defaultdict(list)
        for run in runs:
            begun[run.job].append(run.began_s)
        paths = {one.identity.job_id: self._store / result_key(one.identity) for one in self._asked if one.identity}
        for fault in faults:
            if not fault.held:
                continue
            names = {one.identity.job_id: one.ask.custom_id for one in self._asked if one.identity}
            taken: dict[str, float] = {}
            for job in (job for job in fault.held if job in paths):
                seen = self._witness.objects.get(paths[job])
                taken_on = [*begun[job], *([seen.at_s] if seen is not None else [])]
                later = [at_s - fault.began_s for at_s in taken_on if at_s > fault.began_s]
                if later:
                    taken[names[job]] = round(min(later), 1)
            after = sorted(taken.values())
            if not after:
                continue
            until_s = fault.began_s + after[0]
            others = [
                one for one in faults
                if one is not fault and one.began_s < until_s and one.ended_s > fault.began_s - lease_s
                and one.kind not in ("published again", "identity taken")
            ]  # fmt: skip
            self.verdict.recoveries.append(Recovery(after[0], after[-1], len(after), not others, taken))


def _line_problem(ask: Ask, line: Mapping[str, Any]) -> str | None:
    """What is wrong with a result line of a job of this kind."""
    response, kind = line["response"], ask.kind
    if response is None:
        code = line["error"]["code"]
        return None if (kind, code) in (("expired", "expired"), ("cancelled", "cancelled")) else f"{kind} is {code}"
    if kind in ("hopeless", "unknown", "expired"):
        return f"{kind} has the status {response['status_code']}"
    if response["status_code"] != (400 if kind == "refused" else 200):
        return f"{kind} has the status {response['status_code']}: {str(response['body'])[:200]}"
    body = response["body"]
    if kind == "render":
        return None if base64.b64decode(body["b64_json"]).startswith(_PNG) else "is no picture"
    if kind == "large":
        return None if "object" in body else "is not by reference"
    return None if kind == "refused" or body["nonce"] == ask.nonce else f"is the result of {body['nonce']}"


def _cause(run: EngineRun, ended_s: float, death: Fault | None, faults: Sequence[Fault]) -> str:
    if run.ended_s is None:
        return death.kind if death is not None else "killed by a job"
    if run.status is not None and run.status >= 500:
        return "failed as the job says"
    before = [one for one in faults if one.began_s < ended_s and ended_s - one.ended_s < _BLAMED_FOR_S]
    return f"after: {max(before, key=lambda one: one.began_s).kind}" if before else "no fault near"


def spread(values: Sequence[float]) -> str:
    """Least, median and most."""
    if not values:
        return "none"
    return f"{min(values):.1f} / {statistics.median(values):.1f} / {max(values):.1f}"
