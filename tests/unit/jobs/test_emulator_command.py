"""Finding the emulator, or saying why it is not there. Nothing is started."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cotenant.jobs.queue import emulator
from cotenant.jobs.queue.emulator import EmulatorCommand, find_emulator

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither SDK nor Java, as far as the environment tells."""
    for name in (emulator.JAR_ENV, "CLOUDSDK_ROOT_DIR", "JAVA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(emulator, "_SDK_ROOTS", ())


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def jar_in(sdk: Path, version: str = "0.8.20") -> Path:
    jar = sdk / f"platform/pubsub-emulator/lib/cloud-pubsub-emulator-{version}-all.jar"
    jar.parent.mkdir(parents=True, exist_ok=True)
    jar.touch()
    return jar


def test_a_bare_machine_is_told_what_to_install() -> None:
    found = find_emulator()
    assert isinstance(found, str)
    assert "gcloud components install pubsub-emulator" in found
    assert emulator.JAR_ENV in found


def test_a_jar_without_java_asks_for_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDSDK_ROOT_DIR", str(tmp_path))
    jar_in(tmp_path)
    found = find_emulator()
    assert isinstance(found, str)
    assert "needs Java" in found


def test_the_newest_jar_of_the_sdk_is_run_by_the_java_of_java_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = jar_in(tmp_path / "sdk", "0.8.9"), jar_in(tmp_path / "sdk", "0.8.20")
    os.utime(old, (1, 1))
    java = executable(tmp_path / "jdk/bin/java")
    monkeypatch.setattr(emulator, "_SDK_ROOTS", (str(tmp_path / "sdk"),))
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "jdk"))
    assert find_emulator() == EmulatorCommand(java, new)


def test_a_jar_named_in_the_environment_comes_first_and_must_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executable(tmp_path / "bin/java")
    named = tmp_path / "mine.jar"
    monkeypatch.setenv(emulator.JAR_ENV, str(named))
    found = find_emulator()
    assert isinstance(found, str)
    assert "which is no file" in found
    named.touch()
    assert find_emulator() == EmulatorCommand(tmp_path / "bin/java", named)


def test_the_sdk_is_found_from_gcloud_where_it_lies_elsewhere(tmp_path: Path) -> None:
    jar = jar_in(tmp_path / "odd/place")
    executable(tmp_path / "bin/java")
    executable(tmp_path / "bin/gcloud").write_text(f"#!/bin/sh\necho {tmp_path / 'odd/place'}\n")
    found = find_emulator()
    assert isinstance(found, EmulatorCommand)
    assert found.jar == jar


def test_stopping_a_process_that_is_no_emulator_leaves_it_alone() -> None:
    emulator.stop(os.getpid())
