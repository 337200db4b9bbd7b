"""One platform a module, brought up once by the shipped command as a user would."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from shell import Shell, free_port


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.acceptance)


@pytest.fixture(scope="module")
def workloads() -> dict[str, Any]:
    """What the platform serves; a module of tests may want others."""
    return {
        "mockups": {"mockup": {"templates": ["mug", "poster"]}, "gpu": {"vram_gib": 1.5}},
        "writer": {"llm": {"model": "smollm2-135m", "context_tokens": 1024}, "gpu": {"vram_gib": 5}},
    }


@pytest.fixture(scope="module")
def gpu_gib() -> float:
    """Memory of the one virtual GPU."""
    return 12


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory, workloads: dict[str, Any], gpu_gib: float) -> Shell:
    folder = tmp_path_factory.mktemp("platform")
    # The converted model is worth keeping between runs; run records and tokens are not.
    home = tmp_path_factory.mktemp("home")
    shared_models = Path.home() / ".cache" / "cotenant" / "models"
    shared_models.mkdir(parents=True, exist_ok=True)
    (home / "models").symlink_to(shared_models)
    environment = {
        **{k: v for k, v in os.environ.items() if k not in ("PUBSUB_EMULATOR_HOST", "RAY_API_SERVER_ADDRESS")},
        "COTENANT_HOME": str(home),
        "COTENANT_AGENT_DIR": str(home / "agent"),
        "COTENANT_API_KEYS": "acme:sk-acme-1,globex:sk-globex-1",
    }
    content = {
        "name": "accept",
        "workloads": workloads,
        "gateway": {"port": free_port()},
        "environments": {"local": {"pools": {"shared": {"accelerator": "cpu", "vram_gib": gpu_gib}}}},
    }
    made = Shell(folder, environment, folder / "platform.yaml", content)
    made.write(content)
    return made


@pytest.fixture(scope="module")
def up(shell: Shell) -> Iterator[Shell]:
    """`shell` with its platform running; stopped at the end, and checked to have left nothing behind."""
    try:
        shell.run("up")
        yield shell
    finally:
        shell.run("down", check=False)
