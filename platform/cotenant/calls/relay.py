"""The token relay: chunks of streamed replies from the replicas back to the gateway, past Ray.

A streamed token is tiny and frequent, and a hop through a Serve handle costs more CPU than the token itself. So
the Serve call carries the request, the slot and the cancellation, and the chunks come back over one plain TCP
connection per gateway and replica: the gateway listens (`RelayServer`), puts a `Target` into the call, and the
replica dials back (`RelaySender`) and multiplexes all its streams for that gateway. Everything written in one
turn of the event loop leaves in one write, so one engine step is one packet however many requests it served.

The other way a stream carries only what its reader tells the one who answers (`RelayStream.tell`), a few bytes.

What always holds: no byte of a connection is read as a frame before its token was found right (in constant
time). A frame is never longer than `MAX_FRAME_BYTES`. A stream ends exactly once: with its end frame, an error
frame, or a lost connection. A reader that falls `max_pending_bytes` behind loses its own stream and nobody
else's; a gateway that falls behind makes its senders wait.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
import struct
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast
from weakref import WeakValueDictionary

from cotenant.errors import CallError, ReplicaDied, WorkloadUnavailable

#: kind, stream id, payload length; then the payload.
_HEADER = struct.Struct("!BQI")
_START, _CHUNK, _END, _ERROR, _TELL = 1, 2, 3, 4, 5

MAX_FRAME_BYTES = 1 << 20
TOKEN_BYTES = 32
#: Bytes a reader may fall behind before its stream is given up: minutes of one client's tokens.
MAX_PENDING_BYTES = 4 << 20
#: Bytes a sender keeps for a gateway that does not read, before its streams have to wait.
_HIGH_WATER_BYTES = 1 << 20
HANDSHAKE_S = 5.0


@dataclass(frozen=True)
class Address:
    """Where a gateway's relay listens, and the secret that its senders begin with."""

    host: str
    port: int
    token: bytes = field(repr=False)


@dataclass(frozen=True)
class Target:
    """Where the chunks of one call go. Travels inside the call, so it pickles."""

    address: Address
    stream: int


@dataclass(frozen=True)
class Start:
    """The head of a streamed reply: its status, content type and further headers (lower-case names)."""

    status: int
    content_type: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def encode(self) -> bytes:
        return json.dumps([self.status, self.content_type, dict(self.headers)]).encode()

    @classmethod
    def decode(cls, payload: bytes) -> Start:
        """Raises ValueError on anything that `encode` did not write."""
        match json.loads(payload):
            case [int(status), str(content_type), dict(headers)]:
                return cls(status, content_type, headers)
        raise ValueError("a start frame holds a status, a content type and headers")


class SlowReader(CallError):
    """The client read so slowly that its stream was given up."""


class RelayClosed(ConnectionError):
    """The gateway that asked for the stream is gone, so nobody waits for it."""


# The gateway's side.


class RelayStream:
    """One reply on its way in: `started`, then `read` to the end, or `close` to drop it."""

    def __init__(self, server: RelayServer, stream: int, max_pending_bytes: int) -> None:
        self.id = stream
        self._server = server
        self._max_pending_bytes = max_pending_bytes
        self._carrier: _Incoming | None = None
        self._untold: list[bytes] = []
        self._start: asyncio.Future[Start] = asyncio.get_running_loop().create_future()
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._finished = False
        self._complete = False
        self._error: CallError | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def target(self) -> Target:
        """What the replica needs in order to answer into this stream."""
        return Target(self._server.address, self.id)

    @property
    def finished(self) -> bool:
        """Whether the end is known: complete, failed or closed."""
        return self._finished

    @property
    def complete(self) -> bool:
        """Whether the end frame came: the replica has sent everything."""
        return self._complete

    async def started(self) -> Start:
        """The head of the reply. Raises the CallError that came in its place."""
        return await asyncio.shield(self._start)

    async def read(self) -> bytes:
        """What has come since the last read, as one piece; empty at the end.

        Raises:
            CallError: the stream failed. What came before the failure has been read by then.
        """
        while not self._pending:
            if self._finished:
                if self._error is not None:
                    raise self._error
                return b""
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        data = self._pending[0] if len(self._pending) == 1 else b"".join(self._pending)
        self._pending.clear()
        self._pending_bytes = 0
        return data

    def tell(self, data: bytes) -> None:
        """Send a few bytes to the one who answers; they get there once the stream has started, if it does."""
        if self._carrier is not None and not self._finished:
            self._carrier.send(_TELL, self.id, data)
        else:
            self._untold.append(data)

    def fail(self, error: CallError) -> None:
        """End the stream with an error, unless it has ended already."""
        if not self._finished:
            self._error = error
            self._finish()

    def close(self) -> None:
        """Drop the stream, and what still arrives for it."""
        self._pending.clear()
        self.fail(WorkloadUnavailable("the stream was closed before its end"))

    def _take(self, kind: int, payload: bytes, carrier: _Incoming) -> None:
        if self._finished:
            return
        if kind == _CHUNK:
            self._pending.append(payload)
            self._pending_bytes += len(payload)
            if self._pending_bytes > self._max_pending_bytes:
                self._pending.clear()
                self.fail(SlowReader(f"the client fell {self._pending_bytes >> 10} KiB behind its stream; read faster"))
            else:
                self._wake()
        elif kind == _START:
            if not self._start.done():
                self._start.set_result(Start.decode(payload))
                self._carrier = carrier
                for data in self._untold:
                    carrier.send(_TELL, self.id, data)
        elif kind == _END:
            self._complete = True
            self._finish()
        else:
            self.fail(WorkloadUnavailable(payload.decode(errors="replace")))

    def _finish(self) -> None:
        self._finished = True
        self._server._forget(self.id)
        if not self._start.done():
            error = self._error or WorkloadUnavailable("the replica ended a stream that it had not started")
            self._start.set_exception(error)
            self._start.exception()  # nobody need be waiting for the head
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class RelayServer:
    """Listens for the replicas' connections and hands their frames to the streams they belong to."""

    def __init__(self, *, max_pending_bytes: int = MAX_PENDING_BYTES) -> None:
        self.max_pending_bytes = max_pending_bytes
        self.token = secrets.token_bytes(TOKEN_BYTES)
        self._next = 0
        self._streams: dict[int, RelayStream] = {}
        self._connections: set[_Incoming] = set()
        self._server: asyncio.Server | None = None
        self._address: Address | None = None

    async def start(self, host: str, advertise: str | None = None) -> Address:
        """Listen on a free port of `host`. Replicas are told to dial `advertise` (default: `host`)."""
        self._server = await asyncio.get_running_loop().create_server(self.accept, host, 0)
        port = self._server.sockets[0].getsockname()[1]
        self._address = Address(advertise or host, port, self.token)
        return self._address

    @property
    def address(self) -> Address:
        if self._address is None:
            raise RuntimeError("the relay needs start() before it can take streams")
        return self._address

    @property
    def streams(self) -> int:
        """Streams that are open now."""
        return len(self._streams)

    def accept(self) -> asyncio.Protocol:
        """The protocol of one incoming connection."""
        return _Incoming(self)

    def open(self, *, max_pending_bytes: int | None = None) -> RelayStream:
        """A stream to be answered into; read it to its end, or close it."""
        self._next += 1
        limit = self.max_pending_bytes if max_pending_bytes is None else max_pending_bytes
        stream = self._streams[self._next] = RelayStream(self, self._next, limit)
        return stream

    async def close(self) -> None:
        """Stop listening, drop the connections, fail what is still open."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.abort()
        for stream in list(self._streams.values()):
            stream.fail(ReplicaDied("the gateway's relay was closed"))

    def _forget(self, stream: int) -> None:
        self._streams.pop(stream, None)
        for connection in self._connections:
            connection.carried.discard(stream)


class _Incoming(asyncio.Protocol):
    """A replica's connection: the token first, then frames."""

    def __init__(self, server: RelayServer) -> None:
        self._server = server
        self._buffer = bytearray()
        self._trusted = False
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None
        #: Streams this connection has begun and not ended: they die with it.
        self.carried: set[int] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._deadline = asyncio.get_running_loop().call_later(HANDSHAKE_S, self.abort)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        if not self._trusted:
            if len(buffer) < TOKEN_BYTES:
                return
            if not hmac.compare_digest(bytes(buffer[:TOKEN_BYTES]), self._server.token):
                self.abort()
                return
            self._trusted = True
            self._server._connections.add(self)
            if self._deadline is not None:
                self._deadline.cancel()
            del buffer[:TOKEN_BYTES]
        try:
            for kind, stream, payload in _frames(buffer):
                self._frame(kind, stream, payload)
        except ValueError:
            self.abort()

    def send(self, kind: int, stream: int, payload: bytes) -> None:
        if self._transport is not None:
            self._transport.write(_HEADER.pack(kind, stream, len(payload)) + payload)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._server._connections.discard(self)
        for stream in list(self.carried):
            if found := self._server._streams.get(stream):
                found.fail(ReplicaDied("the replica's connection was lost in the middle of a stream"))

    def _frame(self, kind: int, stream: int, payload: bytes) -> None:
        if kind == _TELL:
            raise ValueError("only a reader tells")
        found = self._server._streams.get(stream)
        if found is None:
            return
        if kind == _START:
            self.carried.add(stream)
        found._take(kind, payload, self)


def _frames(buffer: bytearray) -> Iterator[tuple[int, int, bytes]]:
    """Take the complete frames out of `buffer`: kind, stream, payload. Raises ValueError on what is no frame."""
    at, size = 0, len(buffer)
    try:
        while size - at >= _HEADER.size:
            kind, stream, length = _HEADER.unpack_from(buffer, at)
            if length > MAX_FRAME_BYTES or not _START <= kind <= _TELL:
                raise ValueError("not a frame")
            body = at + _HEADER.size
            if size - body < length:
                break
            at = body + length
            yield kind, stream, bytes(buffer[body:at])
    finally:
        del buffer[:at]


# The replica's side.

Dial = Callable[[Address], Coroutine[Any, Any, "Connection"]]


class RelaySender:
    """A replica's connections, one per gateway, made when first needed and again after a loss."""

    def __init__(self, dial: Dial | None = None) -> None:
        """`dial` makes a connection (default: over TCP)."""
        self._dial = dial or _dial
        self._connections: dict[Address, asyncio.Task[Connection]] = {}

    async def open(self, target: Target) -> Sink:
        """A sink for one call's chunks. Raises RelayClosed if the gateway cannot be reached."""
        known = self._connections.get(target.address)
        if known is None or (known.done() and (known.cancelled() or known.exception() or known.result().lost)):
            known = asyncio.ensure_future(self._dial(target.address))
            self._connections[target.address] = known
            known.add_done_callback(lambda task: self._drop_failed(target.address, task))
        connection = await asyncio.shield(known)
        sink = connection.sinks[target.stream] = Sink(connection, target.stream)
        return sink

    def close(self) -> None:
        """Drop all connections; their streams end with an error at the gateways."""
        for task in self._connections.values():
            if task.done() and not task.cancelled() and task.exception() is None:
                task.result().close()
            else:
                task.cancel()
        self._connections.clear()

    def _drop_failed(self, address: Address, task: asyncio.Task[Connection]) -> None:
        failed = task.cancelled() or task.exception() is not None
        if failed and self._connections.get(address) is task:
            del self._connections[address]
        elif not failed:
            task.result().on_lost = lambda: self._connections.pop(address, None)


class Sink:
    """One call's way back: `start` once, `chunk` any number of times, then `end` or `error` once."""

    def __init__(self, connection: Connection, stream: int) -> None:
        self._connection = connection
        self._stream = stream
        self.on_tell: Callable[[bytes], object] = lambda _: None
        """Called with what the reader of the stream tells."""

    def start(self, start: Start) -> None:
        self._connection.write(_START, self._stream, start.encode())

    async def chunk(self, data: bytes) -> None:
        """Queue bytes for the next write. Waits while the gateway is behind; raises RelayClosed once it is gone."""
        for at in range(0, len(data), MAX_FRAME_BYTES):
            self._connection.write(_CHUNK, self._stream, data[at : at + MAX_FRAME_BYTES])
        if self._connection.paused is not None:
            # All streams of the connection wait for this one future: a call that ends must not take it along.
            await asyncio.shield(self._connection.paused)
            self._connection.check()

    def end(self) -> None:
        self._connection.write(_END, self._stream, b"")

    def error(self, message: str) -> None:
        """End the stream as failed. `message` may reach the client."""
        self._connection.write(_ERROR, self._stream, message.encode()[:4096])


class Connection(asyncio.Protocol):
    """The connection to one gateway: frames of one turn of the loop go out in one write."""

    def __init__(self, token: bytes) -> None:
        self._frames: list[bytes] = [token]
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self.sinks: WeakValueDictionary[int, Sink] = WeakValueDictionary()
        """The calls that are answered here, by stream."""
        self.lost = False
        self.paused: asyncio.Future[None] | None = None
        self.on_lost: Callable[[], object] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_HIGH_WATER_BYTES)
        self._flush()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            for kind, stream, payload in _frames(self._buffer):
                if kind == _TELL and (sink := self.sinks.get(stream)) is not None:
                    sink.on_tell(payload)
        except ValueError:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self.resume_writing()
        if self.on_lost is not None:
            self.on_lost()

    def pause_writing(self) -> None:
        if self.paused is None:
            self.paused = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        paused, self.paused = self.paused, None
        if paused is not None and not paused.done():
            paused.set_result(None)

    def check(self) -> None:
        if self.lost:
            raise RelayClosed("the gateway that asked for this stream closed its relay connection")

    def write(self, kind: int, stream: int, payload: bytes) -> None:
        self.check()
        if not self._frames:
            asyncio.get_running_loop().call_soon(self._flush)
        self._frames.append(_HEADER.pack(kind, stream, len(payload)))
        self._frames.append(payload)

    def close(self) -> None:
        if self._transport is not None:
            self._flush()
            self._transport.close()

    def _flush(self) -> None:
        frames, self._frames = self._frames, []
        if self._transport is not None and frames and not self.lost:
            self._transport.write(b"".join(frames))


async def _dial(address: Address) -> Connection:
    loop = asyncio.get_running_loop()
    try:
        connecting = loop.create_connection(lambda: Connection(address.token), address.host, address.port)
        _, connection = await asyncio.wait_for(connecting, HANDSHAKE_S)
    except (OSError, asyncio.TimeoutError) as error:
        raise RelayClosed(f"no relay answers at {address.host}:{address.port}: {error}") from error
    return connection
