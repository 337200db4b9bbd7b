"""How a door tells the scaler what it sees: at once when that changes, and else once a second."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from cotenant.calls.demand import Asked
from cotenant.telemetry.logs import event
from deployments.scaler import ensure_scaler, find_scaler

LOG = logging.getLogger("cotenant.scaling")

#: The terms of a platform without anything to scale.
NOTHING_SCALES: Mapping[str, Any] = {"workloads": (), "pools": ()}

#: What a door sees is looked at so often, and told at the latest after so long.
_LOOK_EVERY_S, _TELL_EVERY_S = 0.05, 1.0
#: While it changes all the time it is told this often.
_AT_MOST_EVERY_S = 0.1
_ANSWER_S = 5.0
_RETRY_S = 1.0
#: Endings that could not be told are kept, up to so many a workload.
_ENDED_KEPT = 256


class DemandTeller:
    """Tells what `look` sees, by workload. Belongs to one event loop."""

    def __init__(
        self,
        door: str,
        look: Callable[[], Mapping[str, Asked]],
        *,
        on_running: Callable[[Mapping[str, int]], None] = lambda running: None,
    ) -> None:
        """`on_running` is told how many replicas serve, by workload, when that has changed."""
        self._on_running = on_running
        self._door = f"{door}-{secrets.token_hex(6)}"
        self._look = look
        self._terms: Mapping[str, Any] | None = None
        self._terms_told = False
        self._running: Mapping[str, int] = {}
        self._heard_at = float("-inf")
        self._task: asyncio.Task[None] | None = None

    def scale(self, terms: Mapping[str, Any]) -> None:
        """What there is to scale from now on: `manifests.scaling.scaling_terms`."""
        self._terms, self._terms_told = terms, False

    @property
    def heard(self) -> bool:
        """Whether the scaler knows what this door sees."""
        return time.monotonic() - self._heard_at < _ANSWER_S

    def running(self, workload: str) -> int:
        """Replicas of it that serve, as the scaler last said."""
        return self._running.get(workload, 0)

    def start(self) -> None:
        """Begin to tell, in the running loop."""
        self._task = asyncio.create_task(self._run(), name="cotenant-demand")

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        scaler: Any = None
        told: Mapping[str, Asked] = {}
        told_at, untold = float("-inf"), dict[str, tuple[tuple[float, float], ...]]()
        failing = False
        while True:
            try:
                if scaler is None:
                    scaler = await asyncio.to_thread(ensure_scaler if _is_needed(self._terms) else find_scaler)
                    self._terms_told = False
                if self._terms is not None and not self._terms_told:
                    self._terms_told = True
                    await asyncio.wait_for(scaler.terms.remote(self._terms), _ANSWER_S)
                now = time.monotonic()
                asked = self._look()
                for name, one in asked.items():
                    if one.ended:
                        untold[name] = (*untold.get(name, ()), *one.ended)[-_ENDED_KEPT:]
                if now - told_at >= _TELL_EVERY_S or (now - told_at >= _AT_MOST_EVERY_S and _differ(asked, told)):
                    telling = {name: replace(one, ended=untold.get(name, ())) for name, one in asked.items()}
                    knows, running = await asyncio.wait_for(scaler.tell.remote(self._door, telling), _ANSWER_S)
                    self._terms_told = self._terms_told and knows
                    if running != self._running:
                        self._running = running
                        self._on_running(running)
                    untold.clear()
                    told, told_at, self._heard_at, failing = asked, now, time.monotonic(), False
                await asyncio.sleep(_LOOK_EVERY_S)
            except Exception as error:
                # There is none where nothing scales, and none for a moment when its node is lost.
                if (scaler is not None or _is_needed(self._terms)) and not failing:
                    event(LOG, "demand_not_told", level=logging.WARNING, error=error, door=self._door)
                scaler, failing = None, True
                await asyncio.sleep(_RETRY_S)


def _is_needed(terms: Mapping[str, Any] | None) -> bool:
    """Whether there is something to scale: else none is started for a door that has nothing to tell it."""
    return terms is not None and (bool(terms["workloads"]) or any(pool["spare"] for pool in terms["pools"]))


def _differ(asked: Mapping[str, Asked], told: Mapping[str, Asked]) -> bool:
    """Whether more or less waits or runs than was told."""

    def seen(one: Asked | None) -> tuple[int, int, bool]:
        return (one.sent, one.waiting, one.more) if one is not None else (0, 0, False)

    return any(seen(asked.get(name)) != seen(told.get(name)) for name in asked.keys() | told.keys())
