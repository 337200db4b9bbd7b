"""Finds, starts and stops the Pub/Sub emulator of the Google Cloud SDK on this machine.

The jar is run by itself, without `gcloud`, on a loopback port of its own, in a session of its own with a log file,
so that it outlives the command that started it. It keeps its messages in memory: stopping it forgets them.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cotenant.errors import EnvironmentFault

JAR_ENV = "COTENANT_PUBSUB_EMULATOR_JAR"
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
HEAP_MIB = 512

_JAR = "platform/pubsub-emulator/lib/cloud-pubsub-emulator-*-all.jar"
_SDK_ROOTS = (
    "/usr/lib/google-cloud-sdk",
    "/usr/share/google-cloud-sdk",
    "/usr/local/google-cloud-sdk",
    "/opt/google-cloud-sdk",
    "/snap/google-cloud-cli/current",
    "~/google-cloud-sdk",
)


@dataclass(frozen=True)
class RunningEmulator:
    """An emulator that answers at `host_port` (the value of PUBSUB_EMULATOR_HOST)."""

    host_port: str
    pid: int
    log: Path


@dataclass(frozen=True)
class EmulatorCommand:
    """How the emulator is run on this machine."""

    java: Path
    jar: Path

    def start(self, state_dir: Path) -> RunningEmulator:
        """Start it on a free loopback port, log into `state_dir`, return when it answers.

        Raises:
            EnvironmentFault: it did not come up; the text ends with what it said.
        """
        state_dir.mkdir(parents=True, exist_ok=True)
        log = state_dir / "pubsub-emulator.log"
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            port = _free_port()
            with log.open("ab") as output:
                process = subprocess.Popen(
                    [self.java, f"-Xmx{HEAP_MIB}m", "-jar", self.jar, "--host=127.0.0.1", f"--port={port}"],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            try:
                while time.monotonic() < deadline and process.poll() is None:
                    if _answers(port):
                        return RunningEmulator(f"127.0.0.1:{port}", process.pid, log)
                    time.sleep(0.1)
            except BaseException:  # Ctrl-C: nobody has a record of this emulator yet
                stop(process.pid)
                raise
            lost_its_port = process.poll() is not None and _listens(port)
            if process.poll() is None:
                stop(process.pid)
            if not lost_its_port or time.monotonic() >= deadline:
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
                raise EnvironmentFault(
                    f"the Pub/Sub emulator did not answer within {START_TIMEOUT_S:.0f} s; {log} ends with\n{tail}"
                )


def find_emulator() -> EmulatorCommand | str:
    """How to run the emulator here, or in words why it can't be."""
    named = os.environ.get(JAR_ENV)
    if named and not Path(named).is_file():
        return f"{JAR_ENV} names {named}, which is no file; name the emulator's jar or unset it"
    jar = Path(named) if named else next(_jars(), None)
    if jar is None:
        return (
            "no Pub/Sub emulator here: install google-cloud-cli-pubsub-emulator from Google Cloud SDK's apt source, "
            f"run `gcloud components install pubsub-emulator`, or name its jar in {JAR_ENV}"
        )
    java = _java()
    if java is None:
        return (
            f"the Pub/Sub emulator {jar} needs Java, which is not here; install default-jre-headless or set JAVA_HOME"
        )
    return EmulatorCommand(java, jar)


def stop(pid: int) -> None:
    """Stop the emulator with this process id, and nothing else: a process that is no emulator is left alone."""
    if not _is_emulator(pid):
        return
    for send, patience_s in ((signal.SIGTERM, STOP_TIMEOUT_S), (signal.SIGKILL, STOP_TIMEOUT_S)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, send)
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            if _gone(pid):
                return
            time.sleep(0.05)


def _jars() -> Iterator[Path]:
    """Jars in the SDKs of this machine, newest first in each."""
    seen: set[Path] = set()
    for root in _sdk_roots():
        folder = root.expanduser()
        if folder in seen:
            continue
        seen.add(folder)
        yield from sorted(folder.glob(_JAR), key=lambda jar: jar.stat().st_mtime, reverse=True)


def _sdk_roots() -> Iterator[Path]:
    """Where an SDK may lie; `gcloud` itself is asked last, since it takes a second to answer."""
    if root := os.environ.get("CLOUDSDK_ROOT_DIR"):
        yield Path(root)
    yield from map(Path, _SDK_ROOTS)
    if gcloud := shutil.which("gcloud"):
        yield Path(gcloud).resolve().parent.parent
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            told = subprocess.run(
                [gcloud, "info", "--format=value(installation.sdk_root)"],
                capture_output=True,
                text=True,
                timeout=20,
                check=True,
            ).stdout.strip()
            if told:
                yield Path(told)


def _java() -> Path | None:
    if home := os.environ.get("JAVA_HOME"):
        java = Path(home) / "bin" / "java"
        if java.is_file():
            return java
    found = shutil.which("java")
    return Path(found) if found else None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _answers(port: int) -> bool:
    """Whether the emulator itself answers: it says Ok to a GET once it serves."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _is_emulator(pid: int) -> bool:
    """Whether the process is there (not a zombie) and was started as above: a pid used again is nobody's harm."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"-jar" in arguments and b"--host=127.0.0.1" in arguments


def _gone(pid: int) -> bool:
    """Whether the process has ended. A child of ours is reaped; anybody else's is its parent's to reap."""
    with contextlib.suppress(ChildProcessError):
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "ZX"
