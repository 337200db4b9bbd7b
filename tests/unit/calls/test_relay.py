"""The token relay over connections in memory: what holds of a stream however its ends behave."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable

import pytest

from cotenant.calls.relay import (
    MAX_FRAME_BYTES,
    Address,
    Connection,
    RelayClosed,
    RelaySender,
    RelayServer,
    RelayStream,
    SlowReader,
    Start,
    Target,
)
from cotenant.errors import ReplicaDied, WorkloadUnavailable

pytestmark = pytest.mark.unit

HEAD = Start(200, "text/event-stream", {"x-engine": "vllm"})


class Wire(asyncio.Transport):
    """One direction of a connection in memory. Keeps the writes; passes them on unless it is `stuck`."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.stuck = False
        self.deliver: Callable[[bytes], None] = lambda data: None
        self.on_close: Callable[[], None] = lambda: None
        self.closed = False

    def write(self, data: bytes) -> None:  # type: ignore[override]
        self.writes.append(bytes(data))
        if not self.stuck and not self.closed:
            self.deliver(bytes(data))

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def abort(self) -> None:
        self.close()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self.on_close)


class Net:
    """Dials relays in memory. Holds the wires of every connection made, in order, and those of the way back."""

    def __init__(self, server: RelayServer) -> None:
        self._server = server
        self.wires: list[Wire] = []
        self.backs: list[Wire] = []
        self.connections: list[Connection] = []

    async def dial(self, address: Address) -> Connection:
        await asyncio.sleep(0)
        wire, back, incoming, outgoing = Wire(), Wire(), self._server.accept(), Connection(address.token)

        def lost() -> None:
            incoming.connection_lost(None)
            outgoing.connection_lost(None)

        wire.deliver = incoming.data_received  # type: ignore[attr-defined]
        back.deliver = outgoing.data_received
        wire.on_close = lost
        back.on_close = wire.close
        incoming.connection_made(back)
        outgoing.connection_made(wire)
        self.wires.append(wire)
        self.backs.append(back)
        self.connections.append(outgoing)
        return outgoing


@pytest.fixture
def server() -> RelayServer:
    return RelayServer()


@pytest.fixture
def net(server: RelayServer) -> Net:
    return Net(server)


@pytest.fixture
def sender(net: Net) -> RelaySender:
    return RelaySender(dial=net.dial)


def target_of(server: RelayServer, stream: RelayStream, token: bytes | None = None) -> Target:
    return Target(Address("memory", 1, token or server.token), stream.id)


async def read_all(stream: RelayStream) -> list[bytes]:
    pieces = []
    while piece := await stream.read():
        pieces.append(piece)
    return pieces


async def turn() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_a_stream_arrives_as_it_was_sent(server: RelayServer, sender: RelaySender) -> None:
    stream = server.open()
    sink = await sender.open(target_of(server, stream))
    sink.start(HEAD)
    assert await stream.started() == HEAD
    for token in (b"one ", b"two ", b"three"):
        await sink.chunk(token)
    sink.end()
    assert b"".join(await read_all(stream)) == b"one two three"
    assert stream.complete
    assert server.streams == 0


async def test_what_one_turn_of_the_loop_writes_leaves_in_one_write(
    server: RelayServer, sender: RelaySender, net: Net
) -> None:
    streams = [server.open() for _ in range(32)]
    sinks = [await sender.open(target_of(server, stream)) for stream in streams]
    await turn()
    wire = net.wires[0]
    before = len(wire.writes)
    for sink in sinks:
        sink.start(HEAD)
        await sink.chunk(b"token")
    await turn()
    assert len(net.wires) == 1, "one connection per gateway"
    assert len(wire.writes) == before + 1
    assert [await stream.read() for stream in streams] == [b"token"] * 32


async def test_frames_are_put_together_however_the_network_cuts_them(
    server: RelayServer, sender: RelaySender, net: Net
) -> None:
    stream = server.open()
    sink = await sender.open(target_of(server, stream))
    wire = net.wires[0]
    whole = wire.deliver
    wire.deliver = lambda data: [whole(data[i : i + 1]) for i in range(len(data))] and None
    sink.start(HEAD)
    await sink.chunk(b"first")
    await sink.chunk(b"second")
    sink.end()
    assert b"".join(await read_all(stream)) == b"firstsecond"


async def test_a_chunk_longer_than_a_frame_is_split_and_comes_whole(server: RelayServer, sender: RelaySender) -> None:
    stream = server.open()
    sink = await sender.open(target_of(server, stream))
    sink.start(HEAD)
    body = bytes(range(256)) * (MAX_FRAME_BYTES // 256 * 2 + 1)
    await sink.chunk(body)
    sink.end()
    assert b"".join(await read_all(stream)) == body


async def test_a_wrong_token_gets_no_frame_through(server: RelayServer, net: Net) -> None:
    stream = server.open()
    sender = RelaySender(dial=net.dial)
    sink = await sender.open(target_of(server, stream, token=b"x" * 32))
    with pytest.raises(RelayClosed):
        for _ in range(3):
            sink.start(HEAD)
            await sink.chunk(b"forged")
            await turn()
    assert net.wires[0].closed
    assert not stream.finished
    assert not stream._pending


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(struct.pack("!BQI", 2, 1, MAX_FRAME_BYTES + 1), id="too long"),
        pytest.param(struct.pack("!BQI", 9, 1, 0), id="unknown kind"),
        pytest.param(struct.pack("!BQI", 5, 1, 0), id="a kind that only readers send"),
        pytest.param(struct.pack("!BQI", 1, 1, 2) + b"[]", id="a start that isn't one"),
        pytest.param(struct.pack("!BQI", 1, 1, 3) + b"\xff{]", id="a start that isn't JSON"),
    ],
)
async def test_a_connection_that_breaks_the_protocol_is_dropped(
    server: RelayServer, sender: RelaySender, net: Net, frame: bytes
) -> None:
    stream = server.open()
    await sender.open(target_of(server, stream))
    net.wires[0].write(frame)
    assert net.backs[0].closed


async def test_a_lost_connection_ends_its_streams_and_no_others(server: RelayServer, net: Net) -> None:
    replicas = RelaySender(dial=net.dial), RelaySender(dial=net.dial)
    streams = server.open(), server.open()
    sinks = [await replica.open(target_of(server, stream)) for replica, stream in zip(replicas, streams, strict=True)]
    for sink in sinks:
        sink.start(HEAD)
        await sink.chunk(b"begun")
    await turn()
    net.wires[0].close()
    await turn()
    assert await streams[0].read() == b"begun"
    with pytest.raises(ReplicaDied):
        await streams[0].read()
    sinks[1].end()
    assert await read_all(streams[1]) == [b"begun"]
    with pytest.raises(RelayClosed):
        await sinks[0].chunk(b"nobody is there")


async def test_a_sender_dials_again_after_a_loss(server: RelayServer, sender: RelaySender, net: Net) -> None:
    await sender.open(target_of(server, server.open()))
    net.wires[0].close()
    await turn()
    stream = server.open()
    sink = await sender.open(target_of(server, stream))
    sink.start(HEAD)
    sink.end()
    assert await stream.started() == HEAD
    assert len(net.wires) == 2


async def test_calls_that_come_together_share_one_dial(server: RelayServer, sender: RelaySender, net: Net) -> None:
    await asyncio.gather(*(sender.open(target_of(server, server.open())) for _ in range(8)))
    assert len(net.wires) == 1


async def test_a_gateway_that_cannot_be_reached_is_tried_anew_next_time(server: RelayServer, net: Net) -> None:
    attempts = 0

    async def dial(address: Address) -> Connection:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise RelayClosed("nobody answers")
        return await net.dial(address)

    sender = RelaySender(dial=dial)
    with pytest.raises(RelayClosed):
        await sender.open(target_of(server, server.open()))
    await sender.open(target_of(server, server.open()))
    assert attempts == 2


async def test_a_reader_that_falls_too_far_behind_loses_only_its_own_stream(net: Net) -> None:
    server = RelayServer(max_pending_bytes=1000)
    net = Net(server)
    sender = RelaySender(dial=net.dial)
    slow, quick = server.open(), server.open()
    slow_sink, quick_sink = [await sender.open(target_of(server, stream)) for stream in (slow, quick)]
    slow_sink.start(HEAD)
    quick_sink.start(HEAD)
    for _ in range(11):
        await slow_sink.chunk(b"x" * 100)
        await quick_sink.chunk(b"y" * 100)
        await turn()
        assert await quick.read() == b"y" * 100
    with pytest.raises(SlowReader):
        await slow.read()
    await slow_sink.chunk(b"dropped without a word")
    quick_sink.end()
    assert await quick.read() == b""


async def test_a_gateway_that_does_not_read_makes_its_senders_wait(
    server: RelayServer, sender: RelaySender, net: Net
) -> None:
    stream = server.open()
    sink = await sender.open(target_of(server, stream))
    sink.start(HEAD)
    net.connections[0].pause_writing()
    waiting = asyncio.create_task(sink.chunk(b"late"))
    await turn()
    assert not waiting.done()
    net.connections[0].resume_writing()
    await waiting
    sink.end()
    assert await read_all(stream) == [b"late"]


async def test_a_call_that_ends_while_its_connection_waits_takes_no_other_along(
    server: RelayServer, sender: RelaySender, net: Net
) -> None:
    leaving, staying = server.open(), server.open()
    sinks = [await sender.open(target_of(server, stream)) for stream in (leaving, staying)]
    for sink in sinks:
        sink.start(HEAD)
    net.connections[0].pause_writing()
    calls = [asyncio.create_task(sink.chunk(b"late")) for sink in sinks]
    await turn()
    calls[0].cancel()
    await turn()
    assert calls[0].cancelled()
    assert not calls[1].done()
    net.connections[0].resume_writing()
    await calls[1]
    sinks[1].end()
    assert await read_all(staying) == [b"late"]


async def test_an_error_frame_ends_a_stream_before_or_after_its_start(server: RelayServer, sender: RelaySender) -> None:
    early, late = server.open(), server.open()
    early_sink, late_sink = [await sender.open(target_of(server, stream)) for stream in (early, late)]
    early_sink.error("the engine is gone")
    late_sink.start(HEAD)
    late_sink.error("the engine is gone")
    with pytest.raises(WorkloadUnavailable, match="the engine is gone"):
        await early.started()
    assert await late.started() == HEAD
    with pytest.raises(WorkloadUnavailable, match="the engine is gone"):
        await late.read()


async def test_frames_for_a_closed_stream_are_dropped(server: RelayServer, sender: RelaySender) -> None:
    stream = server.open()
    sink = await sender.open(target_of(server, stream))
    stream.close()
    sink.start(HEAD)
    await sink.chunk(b"too late")
    await turn()
    assert server.streams == 0
    with pytest.raises(WorkloadUnavailable):
        await stream.read()


async def test_what_a_reader_tells_reaches_the_call_that_answers_it_and_no_other(
    server: RelayServer, sender: RelaySender
) -> None:
    streams = [server.open() for _ in range(2)]
    sinks = [await sender.open(target_of(server, stream)) for stream in streams]
    heard: list[tuple[int, bytes]] = []
    for number, sink in enumerate(sinks):
        sink.on_tell = lambda data, number=number: heard.append((number, data))  # type: ignore[misc]
        sink.start(HEAD)
    await turn()
    streams[1].tell(b"one")
    streams[0].tell(b"two")
    streams[1].tell(b"three")
    await turn()
    assert heard == [(1, b"one"), (0, b"two"), (1, b"three")]


async def test_what_is_told_before_the_stream_has_started_arrives_when_it_has(
    server: RelayServer, sender: RelaySender
) -> None:
    stream = server.open()
    stream.tell(b"early")
    sink = await sender.open(target_of(server, stream))
    heard: list[bytes] = []
    sink.on_tell = heard.append
    stream.tell(b"bird")
    await turn()
    assert heard == []
    sink.start(HEAD)
    await turn()
    assert heard == [b"early", b"bird"]


async def test_what_is_told_to_a_call_that_has_ended_is_dropped(server: RelayServer, sender: RelaySender) -> None:
    stream = server.open()
    sink = await sender.open(target_of(server, stream))
    sink.start(HEAD)
    sink.end()
    await turn()
    stream.tell(b"late")
    del sink
    other = server.open()
    other_sink = await sender.open(target_of(server, other))
    other_sink.start(HEAD)
    other_sink.end()
    assert await other.read() == b""


async def test_a_gateway_that_breaks_the_protocol_is_hung_up_on(
    server: RelayServer, sender: RelaySender, net: Net
) -> None:
    stream = server.open()
    sink = await sender.open(target_of(server, stream))
    sink.start(HEAD)
    await turn()
    net.backs[0].write(struct.pack("!BQI", 9, 1, 0))
    await turn()
    assert net.wires[0].closed
    with pytest.raises(ReplicaDied):
        await stream.read()


async def test_closing_the_relay_fails_what_is_open(server: RelayServer, sender: RelaySender) -> None:
    stream = server.open()
    sink = await sender.open(target_of(server, stream))
    sink.start(HEAD)
    await turn()
    await server.close()
    with pytest.raises(ReplicaDied):
        await stream.read()


def test_a_target_hides_its_secret_when_printed() -> None:
    assert "secret" not in repr(Target(Address("10.0.0.1", 4000, b"secret"), 7))
