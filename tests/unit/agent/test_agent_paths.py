"""Where agents and replicas meet: nobody else may look in."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from cotenant.agent import paths
from cotenant.errors import EnvironmentFault

pytestmark = pytest.mark.unit


def test_by_default_it_is_a_folder_of_this_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COTENANT_AGENT_DIR", raising=False)
    assert paths.agent_dir() == Path(f"/tmp/cotenant-{os.getuid()}")


def test_it_is_made_for_this_user_alone(agents_folder: Path) -> None:
    assert paths.ensure_agent_dir() == agents_folder
    assert agents_folder.stat().st_mode & 0o777 == 0o700
    assert paths.ensure_agent_dir() == agents_folder


def test_a_folder_that_others_can_open_is_refused(agents_folder: Path) -> None:
    agents_folder.mkdir()
    agents_folder.chmod(0o755)
    with pytest.raises(EnvironmentFault, match="chmod 700"):
        paths.ensure_agent_dir()


def test_a_link_to_a_folder_is_refused(agents_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    agents_folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EnvironmentFault, match="must be a folder of this user"):
        paths.ensure_agent_dir()


def test_a_folder_that_cannot_be_made_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("COTENANT_AGENT_DIR", str(tmp_path / "file" / "agents"))
    with pytest.raises(EnvironmentFault, match="set COTENANT_AGENT_DIR"):
        paths.ensure_agent_dir()


def test_names_become_file_names(agents_folder: Path) -> None:
    assert paths.socket_path("0123456789abcdef0123") == agents_folder / "0123456789abcdef.sock"
    assert paths.socket_path("a/../b") == agents_folder / "a_.._b.sock"
    assert paths.lock_path("cpu:0") == agents_folder / "cpu_0.start"


def test_a_path_too_long_for_a_socket_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COTENANT_AGENT_DIR", "/" + "x" * 100)
    with pytest.raises(EnvironmentFault, match="shorter"):
        paths.socket_path("node")


def test_sockets_are_listed(agents_folder: Path) -> None:
    assert paths.sockets() == []
    agents_folder.mkdir()
    for name in ("b.sock", "a.sock", "a.sock.lock", "c.start"):
        (agents_folder / name).touch()
    assert [path.name for path in paths.sockets()] == ["a.sock", "b.sock"]


def test_what_long_dead_agents_left_is_swept_and_nothing_else(agents_folder: Path) -> None:
    paths.ensure_agent_dir()
    nodes = {"dead": "d" * 16, "lives": "1" * 16, "ours": "0" * 16}
    for node in nodes.values():
        for name in (f"{node}.sock", f"{node}.sock.lock", f"{node[:12]}-cpu_0.start"):
            (agents_folder / name).touch()
        os.utime(agents_folder / f"{node}.sock.lock", (0, 0))
    (agents_folder / "note").touch()
    with (agents_folder / f"{nodes['lives']}.sock.lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        paths.sweep(100.0, besides=nodes["ours"])
        assert len(list(agents_folder.iterdir())) == 10
        paths.sweep(4000.0, besides=nodes["ours"])
    left = {path.name for path in agents_folder.iterdir()}
    assert {name[:12] for name in left} == {"1" * 12, "0" * 12, "note"}
    assert len(left) == 7
