"""Fixtures of the agent's unit tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def agents_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of agents for this test alone; not yet made."""
    folder = tmp_path / "agents"
    monkeypatch.setenv("COTENANT_AGENT_DIR", str(folder))
    return folder
