"""Who watches a chaos run: result objects as they appear, result messages, dead letters, engine runs."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from google.api_core import exceptions as google_errors

from cotenant.jobs.model import Identity
from tests.acceptance.chaos.topics import Topics

_LOOK_EVERY_S = 3.0


@dataclass
class Seen:
    """A result object as it was when it was first seen; `at_s` is Unix time of its creation."""

    sha256: str
    at_s: float


@dataclass(frozen=True)
class DeadLetter:
    data: bytes
    attributes: dict[str, str]


@dataclass
class EngineRun:
    """One run of a job; `ended_s` and `status` are None where its process was killed in it."""

    job: str
    workload: str
    pid: int
    began_s: float
    ended_s: float | None = None
    status: int | None = None


@dataclass
class Witness:
    """Watches in threads of its own, from `start` to `stop`."""

    store: Path
    topics: Topics
    results_topic: str
    dead_topic: str
    objects: dict[Path, Seen] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    told: dict[Identity, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Hashes of the lines that result messages told of a job."""
    told_count: Counter[Identity] = field(default_factory=Counter)
    dead: list[DeadLetter] = field(default_factory=list)
    _windows: int = 0
    _open: set[int] = field(default_factory=set)
    _over: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        self.topics.create(self.results_topic)
        self.topics.create(self.dead_topic)
        self.topics.subscribe("watch-dead", self.dead_topic)
        self.watch_results()
        for target in (self._watch_store, self._watch_dead, self._watch_results):
            thread = threading.Thread(target=target, daemon=True)
            thread.start()
            self._threads.append(thread)

    def watch_results(self) -> None:
        """Open a window on the results topic; the one before ended with the topic that it watched."""
        self.topics.subscribe(f"watch-results-{self._windows + 1}", self.results_topic)
        self._windows += 1
        self._open.add(self._windows)

    def stop(self) -> None:
        """Have a last look at everything, the objects' contents too."""
        self._over.set()
        for thread in self._threads:
            thread.join(60)
        self._look(again=True)

    # --- inside ---

    def _watch_store(self) -> None:
        while not self._over.wait(_LOOK_EVERY_S):
            with suppress(OSError):  # the store is taken away while its folders are listed
                self._look()

    def _look(self, *, again: bool = False) -> None:
        for path in self.store.glob("*/*/results/*.json"):
            if path in self.objects and not again:
                continue
            try:
                seen = Seen(hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime)
            except OSError:
                continue  # the store has just been taken away
            before = self.objects.setdefault(path, seen)
            if before != seen:
                self.changed.append(str(path))
        if again:
            self.changed += [f"{path} is gone" for path in self.objects if not path.exists()]

    def _watch_dead(self) -> None:
        self._drain(self._pull_dead)

    def _watch_results(self) -> None:
        self._drain(self._pull_all_results)

    def _pull_all_results(self) -> bool:
        found = [self._pull_results(window) for window in sorted(self._open)]
        return any(found)

    def _drain(self, pull: Callable[[], bool]) -> None:
        """Pull until the run is over and nothing is left."""
        more = True
        while more or not self._over.is_set():
            try:
                more = pull()
            except (google_errors.GoogleAPIError, OSError):
                more = False
                time.sleep(0.5)

    def _pull_dead(self) -> bool:
        messages = self.topics.pull("watch-dead")
        self.dead += [DeadLetter(bytes(one.data), dict(one.attributes)) for one in messages]
        return bool(messages)

    def _pull_results(self, window: int) -> bool:
        messages = self.topics.pull(f"watch-results-{window}", wait_s=2.0 if window == self._windows else 0.5)
        for message in messages:
            a = message.attributes
            identity = Identity(a["tenant"], a["batch"], a["custom_id"])
            self.told[identity].add(hashlib.sha256(message.data).hexdigest())
            self.told_count[identity] += 1
        if not messages and window != self._windows:
            self._open.discard(window)
        return bool(messages)


def engine_runs(folder: Path) -> list[EngineRun]:
    """All runs that the replicas' notebooks tell of."""
    runs: dict[str, EngineRun] = {}
    for path in sorted((folder / "runs").glob("*.jsonl")):
        for line in path.read_text().splitlines():
            try:
                note = json.loads(line)
            except ValueError:
                continue  # the process was killed while it wrote
            if note["event"] == "begin":
                runs[note["run"]] = EngineRun(note["job"], note["workload"], note["pid"], note["at_s"])
            elif note["run"] in runs:
                runs[note["run"]].ended_s, runs[note["run"]].status = note["at_s"], note["status"]
    return list(runs.values())
