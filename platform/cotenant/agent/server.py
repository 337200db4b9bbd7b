"""The agent as a server on a Unix socket: replicas say, it answers; once an interval it looks at the machine.

It is one asyncio task group without Ray. Only processes of its own user are heard. The kernel tells it who is at the
other end of a connection, whatever a hello says.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import math
import os
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cotenant.agent import guard
from cotenant.agent.ends import Ends
from cotenant.agent.node import Node, Obituary
from cotenant.agent.paths import ensure_agent_dir, socket_path, sweep
from cotenant.agent.protocol import (
    MAX_REQUEST_BYTES,
    Answer,
    Ask,
    Busy,
    Bye,
    Error,
    Hello,
    Idle,
    ProtocolError,
    Report,
    Slept,
    SnapshotAnswer,
    SnapshotRequest,
    Started,
    Withdraw,
    decode_request,
    encode,
    type_of,
)
from cotenant.agent.reading import Reading, read
from cotenant.agent.snapshot import Snapshot
from cotenant.errors import CotenantError, EnvironmentFault, NoRoom
from cotenant.gpu.probe import GpuProbe, Processes
from cotenant.telemetry.starts import Span, Start

_LOG = logging.getLogger("cotenant.agent")
#: Replicas of a dead agent have so long to say hello to the next before it lends anything. Their links try at least
#: every `client.RETRY_S`.
SETTLE_S = 2.0
#: A connection whose other end reads this little is cut.
_MOST_UNSENT_BYTES = 8 * 1024 * 1024
_PEER = struct.Struct("3i")
_Heard = Hello | Report | Ask | Withdraw | Busy | Idle | Slept | Started | SnapshotRequest


class Agent:
    """One node's agent.

    Args:
        probe: the GPUs.
        processes: the machine's processes.
        node_id: names the node, and the socket.
        on_stop: told of a replica before it is stopped, for at most half a second.
        on_sample: told of the state after each look at the machine, in the agent's loop: must not block.
        on_start: told of a start and of its spans that are news, in the agent's loop: must not block.
        interval_s: seconds from look to look.
        limits: when to warn and stop.
        clock: monotonic seconds.
        wall: Unix time, for events.
    """

    def __init__(
        self,
        probe: GpuProbe,
        processes: Processes,
        *,
        node_id: str,
        on_stop: Callable[[Obituary], Awaitable[None]] | None = None,
        on_sample: Callable[[Snapshot], None] | None = None,
        on_start: Callable[[Start, tuple[Span, ...]], None] | None = None,
        interval_s: float = 1.0,
        limits: guard.Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.path = socket_path(node_id)
        self._probe = probe
        self._processes = processes
        self._node_id = node_id
        self._on_sample = on_sample
        self._on_start = on_start
        self._interval_s = interval_s
        self._limits = limits
        self._clock = clock
        self._wall = wall
        self._node = self._new_node(opens_at=-math.inf)
        self._ends = Ends(self, processes, on_stop)
        self._writers: dict[str, asyncio.StreamWriter] = {}
        self._open: set[asyncio.StreamWriter] = set()
        self._turned_away: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._looking: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cotenant-agent-read")
        self._lock: int | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def node(self) -> Node:
        return self._node

    async def start(self) -> None:
        """Listen and begin to look.

        Raises:
            EnvironmentFault: an agent of this node already runs, or the folder can't be used.
        """
        ensure_agent_dir()
        sweep(self._wall(), besides=self._node_id)
        self._take_lock()
        try:
            await self._listen()
        except BaseException:
            assert self._lock is not None
            os.close(self._lock)
            self._lock = None
            raise

    async def _listen(self) -> None:
        came_after_another = self.path.exists()
        if came_after_another:
            self.path.unlink()
            self._node = self._new_node(opens_at=self._clock() + SETTLE_S)
        self._server = await asyncio.start_unix_server(self._serve, self.path, limit=MAX_REQUEST_BYTES)
        after = ", after another that left its socket" if came_after_another else ""
        gpus = f"{len(self._node.places)} GPU{'' if len(self._node.places) == 1 else 's'}"
        self._node.note("started", f"agent {os.getpid()} looks after {gpus}{after}")
        self._looking = asyncio.create_task(self._look_on(), name="agent-look")

    async def close(self) -> None:
        """Stop. The socket's file stays if there are replicas, so that the next agent waits for them."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        if self._server is not None:
            self._server.close()
        await self._ends.close()
        if self._timer is not None:
            self._timer.cancel()
        for writer in tuple(self._open):
            writer.transport.abort()
        self._thread.shutdown(wait=False)
        self._probe.close()
        if not self._node.replicas:
            self.path.unlink(missing_ok=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def serve_forever(self) -> None:
        """Until cancelled; raises what ended the looking, if anything did."""
        assert self._looking is not None
        await self._looking

    def snapshot(self) -> Snapshot:
        return self._node.snapshot()

    async def look(self) -> None:
        """Look at the machine once, and act on it."""
        roots = self._node.roots
        seen = {replica.id: replica.processes for replica in self._node.replicas.values()}
        reading: Reading = await asyncio.get_running_loop().run_in_executor(
            self._thread, read, self._probe, self._processes, roots, seen
        )
        stops = self._node.observe(reading, self._clock())
        self.flush()
        for replica_id, obituary in stops:
            self._ends.stop(replica_id, obituary)
        for replica_id in reading.dead:
            self._ended(replica_id)
        if self._on_sample is not None:
            self._on_sample(self._node.snapshot())

    def left(self, replica_id: str) -> None:
        """A replica's processes are gone: what it held is free."""
        writer = self._writers.pop(replica_id, None)
        if writer is not None:
            # A forked child may keep a dead replica's connection open.
            writer.transport.abort()
        self._node.leave(replica_id, self._clock())
        self.flush()

    def flush(self) -> None:
        """Send what the node has to say, and come back when it next may have something."""
        for replica_id, answer in self._node.take_outbox():
            writer = self._writers.get(replica_id)
            if writer is not None:
                self._send(writer, answer)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due_at = self._node.due_at
        if due_at < math.inf:
            self._timer = asyncio.get_running_loop().call_later(max(0.001, due_at - self._clock()), self._tick)

    def _new_node(self, *, opens_at: float) -> Node:
        return Node(
            self._node_id,
            self._probe.gpus(),
            interval_s=self._interval_s,
            limits=self._limits,
            opens_at=opens_at,
            wall=self._wall,
        )

    def _take_lock(self) -> None:
        """Held for life: two agents of one node would both lend the same memory."""
        path = Path(f"{self.path}.lock")
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise EnvironmentFault(
                f"an agent of node {self._node_id} already runs here ({path}); end it, or leave it to its work"
            ) from None
        self._lock = lock

    def _tick(self) -> None:
        self._node.tick(self._clock())
        self.flush()

    async def _look_on(self) -> None:
        while True:
            began = self._clock()
            try:
                await self.look()
            except Exception:
                # Whatever it is, replicas still need leases and the next look may go well.
                _LOG.exception("the agent could not look at its machine")
            await asyncio.sleep(max(0.05, self._interval_s - (self._clock() - began)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pid, uid = _peer(writer)
        replica_id: str | None = None
        self._open.add(writer)
        try:
            while uid == os.getuid():
                try:
                    frame = await reader.readuntil(b"\n")
                except asyncio.LimitOverrunError:
                    self._send(writer, Error(message=f"a frame has at most {MAX_REQUEST_BYTES} bytes", final=True))
                    break
                except asyncio.IncompleteReadError:
                    break
                try:
                    message = decode_request(frame)
                except ProtocolError as error:
                    about = type_of(frame)
                    self._send(writer, Error(message=str(error), about=about, final=about == "hello"))
                    continue
                if isinstance(message, Bye):
                    if replica_id is not None and self._writers.get(replica_id) is writer:
                        del self._writers[replica_id]
                        self.left(replica_id)
                    break
                replica_id = self._hear(message, replica_id, pid, writer)
                self.flush()
        except ConnectionError:
            pass
        finally:
            self._open.discard(writer)
            self._turned_away.discard(writer)
            writer.close()
            if replica_id is not None and self._writers.get(replica_id) is writer:
                del self._writers[replica_id]
                self._node.disconnected(replica_id)
                self._ended(replica_id)

    def _hear(self, message: _Heard, replica_id: str | None, pid: int, writer: asyncio.StreamWriter) -> str | None:
        """Act on a frame; the replica whose connection this is from now on."""
        now = self._clock()
        try:
            if isinstance(message, SnapshotRequest):
                self._send(writer, SnapshotAnswer(snapshot=self._node.snapshot()))
            elif isinstance(message, Hello):
                return self._greet(message, replica_id, pid, writer)
            elif replica_id is None or replica_id not in self._node.replicas:
                # What was said right after a hello that is refused has had its answer.
                if writer not in self._turned_away:
                    self._send(writer, Error(message="say hello first", about=message.type))
            elif isinstance(message, Report):
                self._node.report(replica_id, message, now)
            elif isinstance(message, Started):
                self._started(replica_id, message.start)
            else:
                self._node.said(replica_id, message, now)
        except CotenantError as error:
            self._send(writer, Error(message=str(error), about=message.type))
        return replica_id

    def _started(self, replica_id: str, said: Start) -> None:
        replica = self._node.replicas[replica_id]
        # Under its own name only, whatever it says.
        start = said.model_copy(update={"workload": replica.workload, "replica": replica_id, "node": self._node_id})
        news = self._node.started(start)
        if news and self._on_start is not None:
            self._on_start(start, news)

    def _greet(self, hello: Hello, replica_id: str | None, pid: int, writer: asyncio.StreamWriter) -> str | None:
        said = hello.identity.replica
        if replica_id is not None:
            self._send(writer, Error(message=f"this connection is {replica_id}'s", about="hello"))
            return replica_id
        before = self._writers.get(said)
        try:
            self._node.hello(hello, pid, self._clock())
        except CotenantError as error:
            self._node.note("refused", f"{hello.terms.workload}: {error}")
            passing = isinstance(error, NoRoom)
            self._turned_away.add(writer)
            self._send(writer, Error(message=str(error), about="hello", final=True, passing=passing))
            return None
        self._writers[said] = writer
        if before is not None:
            before.transport.abort()
        return said

    def _ended(self, replica_id: str) -> None:
        """Its connection broke, or its process ended."""
        replica = self._node.replicas.get(replica_id)
        if replica is None:
            return
        if replica.pid:
            self._ends.follow(replica_id)
        elif not replica.connected:
            # Nothing can be seen of its process: the connection is all there is.
            self.left(replica_id)

    def _send(self, writer: asyncio.StreamWriter, answer: Answer) -> None:
        if writer.transport.get_write_buffer_size() > _MOST_UNSENT_BYTES:
            writer.transport.abort()
        elif not writer.is_closing():
            with contextlib.suppress(ConnectionError):
                writer.write(encode(answer))


def _peer(writer: asyncio.StreamWriter) -> tuple[int, int]:
    """Pid and uid of the other end, by the kernel; the pid is 0 where it is in a namespace out of sight."""
    transport_socket = writer.get_extra_info("socket")
    credentials = transport_socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    pid, uid, _ = _PEER.unpack(credentials)
    return pid, uid
