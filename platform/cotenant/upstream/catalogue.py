"""What another server serves: its models or templates, asked for once and kept.

A server that has scaled to zero is started by being asked, so it is asked when there is something to send, not by the
clock; what it said before is believed meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from cotenant.config.model import Kind

MODELS, TEMPLATES = "/v1/models", "/v1/mockups/templates"
#: What was said is asked again, beside the next request, when it is older than this.
_FRESH_S = 300.0
#: A server that has to start first may take so long to answer; who waits for that here waits less.
_ANSWER_S, _PATIENCE_S = 240.0, 5.0


class Catalogue:
    """Of one server. Belongs to one event loop."""

    def __init__(
        self,
        kind: Kind,
        ask: Callable[[str, float], Awaitable[Any]],
        *,
        failed: Callable[[Exception], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`ask` fetches a path's JSON within so many seconds; `failed` is told when it could not."""
        self._path = TEMPLATES if kind == "mockup" else MODELS
        self._ask = ask
        self._failed = failed
        self._clock = clock
        self._names: frozenset[str] | None = None
        self._asked_at = float("-inf")
        self._asking: asyncio.Task[None] | None = None

    async def has(self, name: str | None) -> bool:
        """Whether it serves that. False while nobody knows; a request that names nothing needs nothing."""
        if name is None:
            return True
        if self._clock() - self._asked_at > _FRESH_S:
            asking = self.refresh()
            if self._names is None:
                await asyncio.wait({asking}, timeout=_PATIENCE_S)
        return self._names is not None and name in self._names

    def lacks(self, name: str | None) -> None:
        """It has just said that it does not serve that."""
        if self._names is not None and name is not None:
            self._names -= {name}

    def refresh(self) -> asyncio.Task[None]:
        """Ask, unless that is under way."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._refresh(), name="cotenant-catalogue")
        return self._asking

    def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()

    async def _refresh(self) -> None:
        try:
            said = await self._ask(self._path, _ANSWER_S)
            rows = said["data"] if isinstance(said, dict) else said
            self._names = frozenset(row["id"] for row in rows if isinstance(row.get("id"), str))
            self._asked_at = self._clock()
        except Exception as error:
            self._failed(error)
