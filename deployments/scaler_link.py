"""The line from Serve's controller to the scaler: a thread that swaps what Serve has for what there should be.

The policies in the controller read and write plain fields here; the thread does all waiting. Where the scaler is not
there it is started; while it can't be reached, nothing is known and everything stays as it is.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

import ray

from cotenant.telemetry.logs import event

_log = logging.getLogger("cotenant.scaling")

#: A target that was heard of longer ago is not known any more.
_KNOWN_S = 10.0
#: A workload that no policy has asked about for so long is gone.
_GONE_S = 30.0
#: How long an exchange waits for news.
_NEWS_S = 0.5
_ANSWER_S = 10.0
_RETRY_S = 1.0


class ScalerLink:
    """One for all policies of a process."""

    def __init__(self) -> None:
        self._has: dict[str, tuple[int, int]] = {}
        self._asked_at: dict[str, float] = {}
        self._targets: Mapping[str, int] = {}
        self._heard_at = float("-inf")
        threading.Thread(target=self._run, name="cotenant-scaler-link", daemon=True).start()

    def exchange(self, name: str, running: int, target: int) -> int | None:
        """Tell how many replicas serve and are asked for; how many there should be, or None if that is not known."""
        now = time.monotonic()
        self._asked_at[name] = now
        self._has[name] = running, target
        if now - self._heard_at > _KNOWN_S:
            return None
        return self._targets.get(name)

    def _run(self) -> None:
        scaler: Any = None
        told: Any = None
        born, version, failures = "", -1, 0
        while True:
            try:
                self._forget()
                if not self._asked_at:  # Serve has nothing that scales
                    time.sleep(_RETRY_S)
                    continue
                if scaler is None:
                    from deployments.scaler import ensure_scaler  # noqa: PLC0415 - Serve is not up when this is made

                    scaler, told = ensure_scaler(), None
                has = dict(self._has)
                if has != told:
                    news = ray.get(scaler.serve_has.remote(has), timeout=_ANSWER_S)
                    told = has
                else:
                    news = ray.get(scaler.news.remote(version, _NEWS_S), timeout=_ANSWER_S)
                if news[0] != born and told is not has:
                    told = None  # another one, that was told nothing yet
                born, version, self._targets = news
                self._heard_at, failures = time.monotonic(), 0
            except Exception as error:
                scaler, failures = None, failures + 1
                if failures in (1, 10) or failures % 100 == 0:
                    event(_log, "scaler_missed", level=logging.WARNING, error=error, failures=failures)
                time.sleep(_RETRY_S)

    def _forget(self) -> None:
        gone_at = time.monotonic() - _GONE_S
        for name in [name for name, at in list(self._asked_at.items()) if at < gone_at]:
            self._asked_at.pop(name, None)
            self._has.pop(name, None)


@functools.cache
def link() -> ScalerLink:
    """This process's."""
    return ScalerLink()
