"""Who takes part in an LLM engine's next step: interactive requests before jobs. Pure.

An engine computes one token for every request that takes part in a step, and the more take part the longer the step
is for each of them. So while anybody waits for an interactive answer, jobs sit out: they keep what they have computed
and go on where they stopped. What always holds:

- a job never takes a place in a step from an interactive request, and no more than `Limits.beside` jobs take part in
  a step with one;
- while an interactive prompt waits or is being computed, no job takes part at all;
- an interactive request that arrives waits for the step that is under way, and such a step computes no more than
  `Limits.prompt_tokens` of jobs' prompts;
- when nobody waits for an interactive answer, all places are the jobs'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: Ranks are vLLM's priorities: the smaller one goes first. Interactive requests have this one, jobs larger ones.
INTERACTIVE = 0

#: Priorities that a job may have among jobs (`Call.priority`); a higher one goes first.
LAST, FIRST = -10, 10


def rank(*, batch: bool, priority: int = 0) -> int:
    """What vLLM is told of a request: INTERACTIVE, or for a job its rank behind that, by its priority among jobs."""
    if not batch:
        return INTERACTIVE
    return INTERACTIVE + 1 + FIRST - min(max(priority, LAST), FIRST)


@dataclass(frozen=True)
class Limits:
    """What jobs may take of an engine.

    `slots` requests take part in one step at the most. `seats` is how many requests the engine can keep half done,
    None if that is not limited. `beside` jobs may take part in a step with interactive requests, which then computes
    `prompt_tokens_beside` of jobs' prompts at the most; a step of jobs alone `prompt_tokens`.
    """

    slots: int
    beside: int
    prompt_tokens: int
    prompt_tokens_beside: int
    seats: int | None = None

    @classmethod
    def of(cls, slots: int, *, on_cpu: bool, block_tokens: int, seats: int | None = None) -> Limits:
        """The limits of an engine with so many slots and blocks of so many tokens in its KV cache.

        On a CPU each further request makes the step longer for all, so no job runs beside an interactive one; 128
        tokens of prompts make a step about as long again as 32 jobs that decode do (docs/measurements.md). A GPU
        reads the same weights for one request and for five: four jobs beside, and the sizes of prompts, are guesses.
        """
        beside, prompt_tokens, prompt_tokens_beside = (0, 128, 0) if on_cpu else (4, 512, 64)
        # Some models compute a prompt by whole blocks.
        return cls(slots, beside, max(prompt_tokens, block_tokens), prompt_tokens_beside, seats)


@dataclass(frozen=True)
class Begun:
    """A request that has begun: its rank, when it arrived, and whether its prompt is still being computed."""

    rank: int
    arrived_s: float
    in_prompt: bool = False

    @property
    def interactive(self) -> bool:
        return self.rank <= INTERACTIVE


@dataclass(frozen=True)
class Turn:
    """One step. `runs` and `gives_up` are indices into what has begun.

    `runs` take part, in the order in which they are given tokens. Up to `starts` more may begin, jobs only if
    `jobs_start`. `prompt_tokens` may be computed beyond one token for each, None without a limit of ours. `gives_up`
    must make their seats free, the first of them first.
    """

    runs: tuple[int, ...]
    starts: int
    jobs_start: bool
    prompt_tokens: int | None
    gives_up: tuple[int, ...] = ()


def turn(begun: Sequence[Begun], interactive_waiting: int, limits: Limits) -> Turn:
    """The next step, given what has begun and how many interactive requests wait to begin."""
    interactive = [index for index, request in enumerate(begun) if request.interactive]
    jobs = [index for index, request in enumerate(begun) if not request.interactive]
    jobs.sort(key=lambda index: (begun[index].rank, begun[index].arrived_s))
    room = max(0, limits.slots - len(interactive))
    urgent = interactive_waiting > 0 or any(begun[index].in_prompt for index in interactive)
    places = 0 if urgent else min(room, limits.beside) if interactive else room
    taking_part = jobs[:places]
    wanted = min(interactive_waiting, room) if urgent else places - len(taking_part)
    free_seats = wanted if limits.seats is None else limits.seats - len(begun)
    # A seat that is given up now can be taken in the step after.
    lacking = min(len(jobs), max(0, wanted - free_seats)) if urgent else 0
    starts = max(0, min(wanted, free_seats))
    jobs_start = starts > 0 and not urgent
    prompt_tokens = None
    if taking_part or jobs_start:
        prompt_tokens = limits.prompt_tokens_beside if interactive else limits.prompt_tokens
    # Prompts last: they take what tokens there are, and the others need one each.
    taking_part.sort(key=lambda index: begun[index].in_prompt)
    gives_up = reversed(jobs[len(jobs) - lacking :])
    return Turn((*interactive, *taking_part), starts, jobs_start, prompt_tokens, tuple(gives_up))
