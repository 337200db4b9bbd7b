"""The command line as an acceptance test drives it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from cotenant.cli.machine.serve_api import ServeApi
from cotenant.cli.machine.state import RunState

COTENANT = Path(sys.executable).with_name("cotenant")


@dataclass
class Shell:
    """The command line in a folder and home of its own; `file` is the platform file that it names."""

    folder: Path
    environment: Mapping[str, str]
    file: Path
    content: dict[str, Any] = field(default_factory=dict)

    def run(self, *arguments: str, timeout_s: float = 600, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command about this platform file."""
        return self.command(arguments[0], "-f", str(self.file), *arguments[1:], timeout_s=timeout_s, check=check)

    def command(self, *arguments: str, timeout_s: float = 600, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(COTENANT), *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode:
            pytest.fail(f"{' '.join(arguments)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def write(self, content: dict[str, Any]) -> None:
        self.file.write_text(yaml.safe_dump(content, sort_keys=False))

    def pids(self) -> dict[str, tuple[int, ...]]:
        """Replica process ids by application."""
        state = self.state()
        with ServeApi(state.dashboard, state.token_file) as serve:
            return {name: application.pids for name, application in serve.applications().items()}

    def replicas(self) -> dict[str, dict[str, Any]]:
        """The replicas on the one GPU by workload, as the GPU agent knows them."""
        (agent,) = json.loads(self.command("top", "--once", "--json").stdout)["agents"]
        (gpu,) = agent["gpus"]
        return {replica["workload"]: replica for replica in gpu["replicas"]}

    def state(self) -> RunState:
        old = os.environ.get("COTENANT_HOME")
        os.environ["COTENANT_HOME"] = self.environment["COTENANT_HOME"]
        try:
            state = RunState.load("accept")
        finally:
            if old is None:
                del os.environ["COTENANT_HOME"]
            else:
                os.environ["COTENANT_HOME"] = old
        assert state is not None
        return state


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
