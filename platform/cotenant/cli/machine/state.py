"""The record of what `cotenant up` started, so that `down` stops that and nothing else.

One JSON file per platform under `$COTENANT_HOME/run`, written atomically and readable by its owner alone. A
process is named by pid *and* start time, since pids are used again.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from cotenant.config.home import home


@dataclass(frozen=True)
class ProcessRef:
    """A process that outlives the command which started it."""

    pid: int
    started_at: float

    @classmethod
    def of(cls, pid: int) -> ProcessRef:
        return cls(pid, psutil.Process(pid).create_time())

    def find(self) -> psutil.Process | None:
        """The process, or None if it has ended (or its pid is somebody else's by now)."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started_at) < 1 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return process if same else None


@dataclass(frozen=True)
class RunState:
    """What runs for one platform on this machine.

    `ray` and `emulator` are None when `up` joined or was given a running one. `dashboard` is the base URL of
    Ray's dashboard, `token_file` holds the token it wants, `store` is the absolute job store. `keys_digest` tells
    whether the API keys in the environment are still those that Ray's processes were started with. `metrics_url` is
    where Ray's metrics are, for Prometheus.
    """

    platform: str
    environment: str
    dashboard: str
    token_file: str | None
    ray: ProcessRef | None
    ray_dir: str | None
    ray_address: str | None
    emulator: ProcessRef | None
    pubsub_emulator_host: str | None
    store: str | None
    gateway_url: str
    keys_digest: str | None = None
    metrics_url: str | None = None

    @classmethod
    def all(cls) -> list[RunState]:
        """The records of all platforms of this user on this machine."""
        found = (cls.load(path.stem) for path in sorted((home() / "run").glob("*.json")))
        return [state for state in found if state is not None]

    @classmethod
    def path(cls, platform: str) -> Path:
        return home() / "run" / f"{platform}.json"

    @classmethod
    def load(cls, platform: str) -> RunState | None:
        """The record of `platform`, or None if there is none that can be read."""
        try:
            raw: dict[str, Any] = json.loads(cls.path(platform).read_text(encoding="utf-8"))
            for key in ("ray", "emulator"):
                raw[key] = ProcessRef(**raw[key]) if raw.get(key) else None
            return cls(**raw)
        except (OSError, ValueError, TypeError, AttributeError):
            return None

    def save(self) -> None:
        path = self.path(self.platform)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = path.with_suffix(f".{os.getpid()}.tmp")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(asdict(self), file, indent=2)
        draft.replace(path)

    def forget(self) -> None:
        self.path(self.platform).unlink(missing_ok=True)
