"""One platform, brought up once by the shipped command as a user would, for all acceptance tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from cotenant.cli.machine.serve_api import ServeApi
from cotenant.cli.machine.state import RunState

COTENANT = Path(sys.executable).with_name("cotenant")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.acceptance)


@dataclass
class Shell:
    """The command line in a folder and home of its own; `file` is the platform file that it names."""

    folder: Path
    environment: Mapping[str, str]
    file: Path
    content: dict[str, Any] = field(default_factory=dict)

    def run(self, *arguments: str, timeout_s: float = 600, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [str(COTENANT), arguments[0], "-f", str(self.file), *arguments[1:]]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=timeout_s, check=False
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


@pytest.fixture(scope="session")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    folder = tmp_path_factory.mktemp("platform")
    # The converted model is worth keeping between runs; run records and tokens are not.
    home = tmp_path_factory.mktemp("home")
    shared_models = Path.home() / ".cache" / "cotenant" / "models"
    shared_models.mkdir(parents=True, exist_ok=True)
    (home / "models").symlink_to(shared_models)
    environment = {
        **{k: v for k, v in os.environ.items() if k not in ("PUBSUB_EMULATOR_HOST", "RAY_API_SERVER_ADDRESS")},
        "COTENANT_HOME": str(home),
        "COTENANT_API_KEYS": "acme:sk-acme-1,globex:sk-globex-1",
    }
    content = {
        "name": "accept",
        "workloads": {
            "mockups": {"mockup": {"templates": ["mug", "poster"]}, "gpu": {"vram_gib": 1.5}},
            "writer": {"llm": {"model": "smollm2-135m", "context_tokens": 1024}, "gpu": {"vram_gib": 5}},
        },
        "gateway": {"port": free_port()},
        "environments": {"local": {"pools": {"shared": {"accelerator": "cpu", "vram_gib": 12}}}},
    }
    made = Shell(folder, environment, folder / "platform.yaml", content)
    made.write(content)
    return made


@pytest.fixture(scope="session")
def up(shell: Shell) -> Iterator[Shell]:
    """`shell` with its platform running; stopped at the end, and checked to have left nothing behind."""
    try:
        shell.run("up")
        yield shell
    finally:
        shell.run("down", check=False)
