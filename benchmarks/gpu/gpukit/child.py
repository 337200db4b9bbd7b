"""A process under test, seen from outside: it is told what to do and answers, one JSON object a line.

What it does is in `tenant`. Always true: leaving the `with` ends the process, whatever happened.
"""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from types import TracebackType
from typing import Any

from gpukit.machine import child_environment

START_S = 180.0
ANSWER_S = 120.0
_LAST_WORDS = 1200


class ChildFailed(Exception):
    """It ended, or did not answer in time."""


class Child:
    """A tenant process. `env` is added to its environment."""

    def __init__(self, name: str, *, env: dict[str, str] | None = None, wait: bool = True) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - open for as long as this is
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gpukit.tenant"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=child_environment(**(env or {})),
        )
        self.began = time.monotonic()
        self.events: list[dict[str, Any]] = []
        """What it said without being asked, so far read."""
        self._said: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        threading.Thread(target=self._listen, name=f"listen-{name}", daemon=True).start()
        if wait:
            self.ready()

    @property
    def pid(self) -> int:
        return self.process.pid

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ready(self, timeout_s: float = START_S) -> dict[str, Any]:
        """Wait until it has imported torch and made its context."""
        return self._until("ready", timeout_s)

    def tell(self, do: str, **arguments: Any) -> None:
        """Have it do something; `answer` waits for what comes of it."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self.process.stdin.flush()
        except (BrokenPipeError, ValueError):
            raise ChildFailed(self._epitaph(f"was told {do}")) from None

    def answer(self, to: str, timeout_s: float = ANSWER_S) -> dict[str, Any]:
        """Its answer to what it was told.

        Raises:
            ChildFailed: it ended, or took longer.
        """
        return self._until(to, timeout_s)

    def ask(self, do: str, *, timeout_s: float = ANSWER_S, **arguments: Any) -> dict[str, Any]:
        """`tell` and `answer`; raises also if it could not do it."""
        self.tell(do, **arguments)
        said = self.answer(do, timeout_s)
        if "error" in said:
            raise ChildFailed(f"{self.name} could not {do}: {said['error']}")
        return said

    def kill(self) -> None:
        """SIGKILL."""
        self.process.send_signal(signal.SIGKILL)

    def wait_end(self, timeout_s: float) -> int | None:
        """Its exit status (negative: the signal that ended it), or None if it still runs after that time."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def close(self) -> None:
        """End it, kindly first."""
        if self.process.poll() is None:
            assert self.process.stdin is not None
            try:
                self.process.stdin.close()
                self.process.wait(20)
            except (OSError, subprocess.TimeoutExpired):
                self.process.kill()
        self.process.wait()

    def last_words(self) -> str:
        """The end of what it wrote to stderr."""
        self._errors.seek(0, 2)
        self._errors.seek(max(0, self._errors.tell() - _LAST_WORDS))
        return self._errors.read().decode(errors="replace").strip()

    def _until(self, re: str, timeout_s: float) -> dict[str, Any]:
        by = time.monotonic() + timeout_s
        while True:
            try:
                said = self._said.get(timeout=max(0.0, by - time.monotonic()))
            except queue.Empty:
                raise ChildFailed(self._epitaph(f"did not answer {re} within {timeout_s:.0f} s")) from None
            if said is None:
                self._said.put(None)
                raise ChildFailed(self._epitaph(f"ended before it answered {re}"))
            if said.get("re") == re:
                return said
            self.events.append(said)

    def heard(self) -> list[dict[str, Any]]:
        """Everything it has said without being asked, up to now or to its end."""
        while True:
            try:
                said = self._said.get_nowait()
            except queue.Empty:
                return self.events
            if said is None:
                self._said.put(None)
                return self.events
            self.events.append(said)

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                self._said.put(json.loads(line))
            except ValueError:
                continue  # cut off by its end
        self._said.put(None)

    def _epitaph(self, what: str) -> str:
        return f"{self.name} (pid {self.pid}, status {self.process.poll()}) {what}; it said: {self.last_words()}"
