"""What a start consists of, stage by stage: how long each took, recorded where it happened.

At every moment of a start something is what it waits for, and that is the stage: stages follow each other without gap
or overlap, so their seconds add up to the whole. Work that goes on beside it (imports in a thread while the replica
waits for its turn) counts only once it is waited for. The first result is apart: between readiness and the first call
nobody waits for anything.

Times are Unix seconds, since a start goes through several processes of one machine. Pure but for the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from statistics import fmean, median
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import Self

Stage = Literal["queued", "node", "image", "process", "imports", "turn", "weights", "warm_up", "wake", "first_result"]
Kind = Literal["cold", "load", "wake"]

#: What each stage is, in their order.
STAGES: dict[Stage, str] = {
    "queued": "asked for, and no process yet: Ray places it",
    "node": "a node that was not there yet comes up; where nothing tells them apart its image is part of it",
    "image": "the container image is fetched",
    "process": "interpreter, Ray, the replica's own module",
    "imports": "renderer, torch, vLLM",
    "turn": "the node's agent, memory that others hold, the turn among those that start on this GPU",
    "weights": "model, templates and scenes are read",
    "warm_up": "compilers, caches, the first frame or step",
    "wake": "back from asleep",
    "first_result": "the first call's own time, once it was ready",
}
#: cold: a new process. load: the same process, gone cold. wake: from asleep.
KINDS: tuple[Kind, ...] = ("cold", "load", "wake")

_WITHIN: dict[Kind, frozenset[Stage]] = {
    "cold": frozenset(STAGES) - {"wake"},
    "load": frozenset({"imports", "turn", "weights", "warm_up", "first_result"}),
    "wake": frozenset({"turn", "wake", "first_result"}),
}
#: Spans that a start has at most.
MOST_SPANS = 32
#: Two clocks of one machine, and rounding.
_JITTER_S = 0.001


class Span(BaseModel):
    """A stage, from when to when."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    stage: Stage
    began_at: float = Field(ge=0)
    ended_at: float = Field(ge=0)

    @model_validator(mode="after")
    def _forward(self) -> Self:
        if self.ended_at < self.began_at:
            raise ValueError(f"{self.stage} ends {self.began_at - self.ended_at:.3f} s before it begins")
        return self

    @property
    def seconds(self) -> float:
        return self.ended_at - self.began_at


class Start(BaseModel):
    """A start that came to its end: the replica was ready, and maybe has answered its first call."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: Kind
    workload: str
    replica: str = ""
    node: str = ""
    spans: tuple[Span, ...] = Field(min_length=1, max_length=MOST_SPANS)

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        for span in self.spans:
            if span.stage not in _WITHIN[self.kind]:
                raise ValueError(f"a start of kind {self.kind} has no stage {span.stage}")
        if "first_result" in {span.stage for span in self.spans[:-1]} or not self.until_ready:
            raise ValueError("the first result is the last stage, and not the only one")
        for one, following in pairwise(self.until_ready):
            if abs(following.began_at - one.ended_at) > _JITTER_S:
                raise ValueError(f"{following.stage} does not begin where {one.stage} ends")
        if self.first_result is not None and self.first_result.began_at < self.ready_at - _JITTER_S:
            raise ValueError("the first result begins before it was ready")
        return self

    @property
    def id(self) -> tuple[str, Kind, float]:
        """What tells it from other starts: its replica, its kind, and when its last stage before readiness ended."""
        return self.replica, self.kind, self.ready_at

    @property
    def until_ready(self) -> tuple[Span, ...]:
        return tuple(span for span in self.spans if span.stage != "first_result")

    @property
    def first_result(self) -> Span | None:
        return self.spans[-1] if self.spans[-1].stage == "first_result" else None

    @property
    def began_at(self) -> float:
        return self.spans[0].began_at

    @property
    def ready_at(self) -> float:
        return self.until_ready[-1].ended_at

    @property
    def ready_s(self) -> float:
        """From being asked for, as far back as that is known, to being ready."""
        return self.ready_at - self.began_at

    def seconds(self) -> dict[Stage, float]:
        """By stage, in their order; a stage that came twice is added up."""
        sums: dict[Stage, float] = {}
        for stage in STAGES:
            spans = [span.seconds for span in self.spans if span.stage == stage]
            if spans:
                sums[stage] = sum(spans)
        return sums


def traced_back(start: Start, *, asked_at: float | None, node_began_at: float | None = None) -> Start:
    """`start` from when it was asked for, instead of from when its process was made.

    A process may be older than the wish for it (Ray keeps some ready), so where `asked_at` is None `process` is left
    out: how long the process had idled is no part of the start. A node that began after the wish is what was waited
    for until then. All in Unix seconds; of a start that is not cold nothing changes.
    """
    if start.kind != "cold" or start.spans[0].stage != "process" or len(start.until_ready) < 2:
        return start
    process = start.spans[0]
    if asked_at is None:
        return start.model_copy(update={"spans": start.spans[1:]})
    asked_at = min(asked_at, process.ended_at)
    marks: list[tuple[Stage, float]] = []
    began_at = asked_at
    if node_began_at is not None and asked_at < node_began_at <= process.ended_at:
        marks.append(("node", began_at))
        began_at = node_began_at
    if process.began_at > began_at:
        marks.append(("queued", began_at))
        began_at = process.began_at
    marks.append(("process", began_at))
    return start.model_copy(update={"spans": (*spans_between(marks, process.ended_at), *start.spans[1:])})


def spans_between(marks: Sequence[tuple[Stage, float]], ended_at: float) -> list[Span]:
    """Stages by when each was entered, the last of them until `ended_at`. What took no time is left out."""
    ends = [at for _, at in marks[1:]] + [ended_at]
    return [
        Span(stage=stage, began_at=at, ended_at=end) for (stage, at), end in zip(marks, ends, strict=True) if end > at
    ]


class OnStage(Protocol):
    """How who loads tells in which stage it is: from now on, or since `at` (Unix seconds)."""

    def __call__(self, stage: Stage, at: float | None = None) -> None: ...


def unheard(stage: Stage, at: float | None = None) -> None:
    """An `OnStage` for who loads and is not recorded."""


class Recorder:
    """Records the starts of one replica as they happen. Its methods never raise, and cost nothing while none is under
    way. One start at a time; whoever enters a stage may be on another thread than who began the start, if not at the
    same time.

    Args:
        workload: whose start it is.
        replica: its id.
        node: its node's.
        tell: told of every start when it is ready, and again when its first result is there.
        clock: Unix seconds.
    """

    def __init__(
        self,
        workload: str,
        replica: str = "",
        node: str = "",
        *,
        tell: Callable[[Start], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.tell = tell
        self._workload = workload
        self._replica = replica
        self._node = node
        self._clock = clock
        self._kind: Kind | None = None
        self._marks: list[tuple[Stage, float]] = []
        self._unanswered: Start | None = None

    @property
    def awaits_result(self) -> bool:
        """Whether a start is ready and nothing has been answered since."""
        return self._unanswered is not None

    def begin(self, kind: Kind, stage: Stage, at: float | None = None) -> None:
        """A start begins with this stage. If one is under way already, it goes on, with this stage."""
        if self._kind is None:
            self._kind, self._marks = kind, []
        self.enter(stage, at)

    def enter(self, stage: Stage, at: float | None = None) -> None:
        """From now, or from `at`, this is what the start waits for. Heard only of a stage that such a start has.

        What goes back before the last mark is put there, so that a clock which was set meanwhile does no harm.
        """
        if self._kind is None or stage not in _WITHIN[self._kind] or stage == "first_result":
            return
        if len(self._marks) >= MOST_SPANS - 1:
            return
        at = self._clock() if at is None else min(at, self._clock())
        if self._marks:
            at = max(at, self._marks[-1][1])
            if self._marks[-1][0] == stage:
                return
        self._marks.append((stage, at))

    def ready(self) -> None:
        """The replica can work: the start is at its end."""
        kind, marks = self._kind, self._marks
        self.drop()
        if kind is None or not marks:
            return
        spans = spans_between(marks, max(self._clock(), marks[-1][1]))
        if spans:
            self._told(
                Start(kind=kind, workload=self._workload, replica=self._replica, node=self._node, spans=tuple(spans))
            )

    def drop(self) -> None:
        """The start came to nothing."""
        self._kind, self._marks = None, []

    def answered(self, came_at: float) -> None:
        """A call that came then has been answered. The first one since a start was ready is its first result."""
        start, self._unanswered = self._unanswered, None
        if start is None or self.tell is None:
            return
        began_at = max(came_at, start.ready_at)
        span = Span(stage="first_result", began_at=began_at, ended_at=max(began_at, self._clock()))
        self.tell(start.model_copy(update={"spans": (*start.spans, span)}))

    def _told(self, start: Start) -> None:
        self._unanswered = start
        if self.tell is not None:
            self.tell(start)


class Kept:
    """The latest starts, so many of each workload and kind: wakes, which are many, do not push out the cold ones."""

    def __init__(self, of_each: int = 25, at_most: int = 500) -> None:
        self._of_each = of_each
        self._at_most = at_most
        self._starts: list[Start] = []

    def add(self, start: Start) -> tuple[Span, ...]:
        """Keep it, in place of what was told of it before. Returns the spans that are news."""
        for index, known in enumerate(self._starts):
            if known.id == start.id:
                if len(start.spans) < len(known.spans):
                    return ()
                self._starts[index] = start
                return start.spans[len(known.spans) :]
        alike = [one for one in self._starts if (one.workload, one.kind) == (start.workload, start.kind)]
        if len(alike) >= self._of_each:
            self._starts.remove(alike[0])
        elif len(self._starts) >= self._at_most:
            del self._starts[0]
        self._starts.append(start)
        return start.spans

    def all(self) -> tuple[Start, ...]:
        """As they came."""
        return tuple(self._starts)


class Figures(BaseModel):
    """What a number of starts took, in seconds: of one stage, or to be ready (`stage` None)."""

    model_config = ConfigDict(frozen=True)

    workload: str
    kind: Kind
    stage: Stage | None
    starts: int
    least_s: float
    p50_s: float
    mean_s: float
    most_s: float


def figures(starts: Iterable[Start]) -> list[Figures]:
    """By workload, kind and stage, each group closed by what it took to be ready. A start without a stage took 0 s for
    it, if others of its group have it; of the first result only those count that have one."""
    groups: dict[tuple[str, Kind], list[Start]] = {}
    for start in starts:
        groups.setdefault((start.workload, start.kind), []).append(start)
    found = []
    for (workload, kind), group in sorted(groups.items(), key=lambda one: (one[0][0], KINDS.index(one[0][1]))):
        each = [start.seconds() for start in group]
        for stage in STAGES:
            if not any(stage in seconds for seconds in each):
                continue
            values = (
                [s[stage] for s in each if stage in s] if stage == "first_result" else [s.get(stage, 0.0) for s in each]
            )
            found.append(_figures(workload, kind, stage, values))
        found.append(_figures(workload, kind, None, [start.ready_s for start in group]))
    return found


def _figures(workload: str, kind: Kind, stage: Stage | None, seconds: Sequence[float]) -> Figures:
    return Figures(
        workload=workload,
        kind=kind,
        stage=stage,
        starts=len(seconds),
        least_s=min(seconds),
        p50_s=median(seconds),
        mean_s=fmean(seconds),
        most_s=max(seconds),
    )
