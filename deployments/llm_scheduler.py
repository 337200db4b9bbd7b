"""vLLM's scheduler, in which interactive requests come before jobs. Runs in the engine's own process.

`cotenant.engines.llm.turns` decides who takes part in a step; here vLLM's scheduler is shown no more than those and
does the rest itself. A job that sits out stays what it was to vLLM, a running request that is not scheduled: it keeps
its KV cache and can be cancelled. When interactive work needs the cache that such jobs hold, the last of them is
preempted, as vLLM preempts: it waits again and is computed again, as far as the prefix cache does not have it.

vLLM calls the interface of its schedulers not public. What is relied on here: `schedule` looks for who takes part in
`running`, `waiting` and `skipped_waiting` only, takes the limits of a step from `max_num_running_reqs` and
`max_num_scheduled_tokens`, and gets all memory from `kv_cache_manager.allocate_slots`.
"""

from __future__ import annotations

import time
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.request_queue import PriorityRequestQueue
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

from cotenant.engines.llm.turns import INTERACTIVE, Begun, Limits, turn


class _Queue(PriorityRequestQueue):  # type: ignore[misc]
    """vLLM's waiting queue, by rank. While it is closed to jobs it looks empty when only jobs wait."""

    closed = False

    def __bool__(self) -> bool:
        return bool(self._heap) and not (self.closed and self._heap[0].priority > INTERACTIVE)

    @property
    def interactive(self) -> int:
        """Interactive requests that wait to begin."""
        return sum(
            request.priority <= INTERACTIVE and request.status != RequestStatus.WAITING_FOR_STREAMING_REQ
            for request in self._heap
        )


class ClassScheduler(Scheduler):  # type: ignore[misc]
    """For an engine whose steps follow each other (on a CPU)."""

    running: list[Request]
    max_num_scheduled_tokens: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.waiting, self.skipped_waiting = _Queue(), _Queue()
        self._limits = _limits(self.vllm_config)
        self._most_tokens = self.max_num_scheduled_tokens
        #: Jobs that have begun and sit out the present step.
        self._sitting_out: list[Request] = []
        self._allocate = self.kv_cache_manager.allocate_slots
        self.kv_cache_manager.allocate_slots = self._allocate_or_preempt

    def schedule(self, throttle_prefills: bool = False) -> Any:
        """vLLM's `schedule` over those whose turn it is."""
        everybody = self.running
        decided = turn(
            [Begun(request.priority, request.arrival_time, request.is_prefill_chunk) for request in everybody],
            self.waiting.interactive + self.skipped_waiting.interactive if self._admits else 0,
            self._limits,
        )
        self.running = [everybody[index] for index in decided.runs]
        self._sitting_out = [request for index, request in enumerate(everybody) if index not in decided.runs]
        for index in decided.gives_up:
            self._preempt(everybody[index])
        self.max_num_running_reqs = len(self.running) + decided.starts
        self.waiting.closed = self.skipped_waiting.closed = not decided.jobs_start
        if decided.prompt_tokens is not None:
            tokens = len(self.running) * (1 + self.num_spec_tokens) + decided.prompt_tokens
            self.max_num_scheduled_tokens = min(self._most_tokens, tokens)
        try:
            return super().schedule(throttle_prefills)
        finally:
            self.running += self._sitting_out
            self.waiting.closed = self.skipped_waiting.closed = False
            self.max_num_scheduled_tokens = self._most_tokens

    @property
    def _admits(self) -> bool:
        """Whether who waits may begin; not while vLLM drains for a pause, when jobs must go on to their end."""
        return bool(self._pause_state == PauseState.UNPAUSED)

    def _allocate_or_preempt(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        """vLLM's `allocate_slots`; where memory is short, jobs that sit out are preempted, the last one first."""
        blocks = self._allocate(request, *args, **kwargs)
        while blocks is None and self._sitting_out:
            self._preempt(max(self._sitting_out))
            blocks = self._allocate(request, *args, **kwargs)
        return blocks

    def _preempt(self, job: Request) -> None:
        self._sitting_out.remove(job)
        self._preempt_request(job, time.monotonic())


class AsyncClassScheduler(ClassScheduler, AsyncScheduler):  # type: ignore[misc]
    """For an engine that schedules a step while the one before it is under way (on a GPU).

    With one GPU no more than two steps are under way. So when a job has sat out a step, its last token has come, as
    vLLM needs it for a request that joins the batch again.
    """


def _limits(config: Any) -> Limits:
    slots = config.scheduler_config.max_num_seqs
    return Limits.of(
        slots,
        on_cpu=config.device_config.device_type == "cpu",
        block_tokens=config.cache_config.block_size,
        # vLLM's second model runner has rows for so many requests, and those that sit out keep theirs; the first one
        # has rows for a step only.
        seats=slots if config.use_v2_model_runner else None,
    )
