"""What a door counts of the calls that go through it, and what a call costs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from cotenant.calls import Call, InMemoryBackend, Reply, StreamedReply
from cotenant.calls.cost import units_of
from cotenant.calls.counted import CountedBackend
from cotenant.calls.demand import Asked
from cotenant.errors import UnknownWorkload

pytestmark = pytest.mark.unit


class World:
    """A counted backend over one workload whose calls end when told."""

    def __init__(self) -> None:
        self.now = 100.0
        self.go = asyncio.Event()
        self.room = True

        async def work(call: Call) -> Reply:
            await self.go.wait()
            return Reply(400 if call.body == b"bad" else 200, b"")

        async def chunks() -> AsyncIterator[bytes]:
            yield b"a"
            yield b"b"

        handlers = {"w": work, "s": lambda call: StreamedReply(200, "text/plain", chunks())}
        self.door = CountedBackend(
            InMemoryBackend(handlers, slots=8), has_room=lambda name, sent: self.room, clock=lambda: self.now
        )


async def test_calls_under_way_are_told_with_their_ages_and_once_ended_with_their_time() -> None:
    world = World()
    first = asyncio.create_task(world.door.call("w", Call("/x", units=3.0)))
    await asyncio.sleep(0)
    world.now += 2
    second = asyncio.create_task(world.door.call("w", Call("/x", b"bad")))
    await asyncio.sleep(0)
    world.now += 1
    assert world.door.asked() == {"w": Asked(sent=2, ages_s=(1.0, 3.0), arrived=2)}
    world.go.set()
    await asyncio.gather(first, second)
    # One that was refused says nothing of how long work takes.
    assert world.door.asked() == {"w": Asked(arrived=2, ended=((3.0, 3.0),))}
    assert world.door.asked() == {"w": Asked(arrived=2)}


async def test_a_call_that_had_to_wait_or_was_given_up_says_nothing_of_its_time() -> None:
    world = World()
    world.room = False
    waiting = asyncio.create_task(world.door.call("w", Call("/x")))
    await asyncio.sleep(0)
    world.room = True
    given_up = asyncio.create_task(world.door.call("w", Call("/x")))
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.wait([given_up])
    world.go.set()
    await waiting
    assert world.door.asked() == {"w": Asked(arrived=2)}


async def test_a_stream_is_over_with_its_last_chunk_or_when_its_reader_goes() -> None:
    world = World()
    whole = await world.door.stream("s", Call("/x", units=2.0))
    cut = await world.door.stream("s", Call("/x"))
    assert world.door.asked()["s"].sent == 2
    assert [chunk async for chunk in whole.chunks] == [b"a", b"b"]
    await whole.chunks.aclose()  # type: ignore[attr-defined]
    await cut.chunks.__anext__()
    await cut.chunks.aclose()  # type: ignore[attr-defined]
    assert world.door.asked() == {"s": Asked(arrived=2, ended=((2.0, 0.0),))}


async def test_what_fails_and_what_only_looks_is_not_left_under_way() -> None:
    world = World()
    with pytest.raises(UnknownWorkload):
        await world.door.call("nobody", Call("/x"))
    with pytest.raises(UnknownWorkload):
        await world.door.stream("nobody", Call("/x"))
    world.go.set()
    await world.door.call("w", Call("/x", method="GET"))
    assert world.door.asked() == {"nobody": Asked(arrived=2)}
    assert set(await world.door.status()) == {"w", "s"}


@pytest.mark.parametrize(
    ("kind", "body", "units"),
    [
        ("mockup", {}, 0.262144 * 32),
        ("mockup", {"size": 1000, "samples": 16}, 16.0),
        ("mockup", {"size": "2000x1000", "samples": "8"}, 16.0),
        ("mockup", {"width": 1000, "height": 500, "samples": 2}, 1.0),
        ("mockup", {"size": "huge", "samples": -4}, 0.262144 * 32),
        ("mockup", {"size": 10**9, "samples": 10**9}, 0.262144 * 32),
        ("image", {"n": 10**9, "steps": 10**9}, 0.262144 * 20),
        ("llm", {"max_completion_tokens": None, "max_tokens": 50}, 50.0),
        ("image", {"size": "1000x1000", "steps": 4, "n": 2}, 8.0),
        ("image", {"size": "auto"}, 0.262144 * 20),
        ("llm", {"max_tokens": 100, "prompt": "x" * 400}, 102.0),
        ("llm", {"max_completion_tokens": 10, "n": 3, "messages": [{"content": "x" * 200}, 7, {"content": []}]}, 31.0),
        ("llm", {"max_tokens": True, "messages": "nonsense"}, 256.0),
    ],
)
def test_a_call_costs_what_its_body_asks_for(kind: str, body: dict[str, object], units: float) -> None:
    assert units_of(kind, body) == pytest.approx(units)  # type: ignore[arg-type]
