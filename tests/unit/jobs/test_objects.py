"""What every store of objects promises: the in-memory twin, obstore's memory, and a folder, by the same tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cotenant.errors import EnvironmentFault, StoreUnavailable
from cotenant.jobs.store.objects import MemoryObjects, Objects, open_objects

pytestmark = pytest.mark.unit


@pytest.fixture(params=["twin", "memory", "folder"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    match request.param:
        case "twin":
            return MemoryObjects()
        case "memory":
            return open_objects("memory://")
    return open_objects(str(tmp_path / "store"))


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        await asyncio.sleep(0)
        yield part


async def broken_off() -> AsyncIterator[bytes]:
    yield b"x" * 100
    raise ConnectionError("the client left")


async def test_an_object_is_created_once_and_racing_writers_know_who_won(objects: Objects) -> None:
    won = await asyncio.gather(*(objects.create("a/b", str(n).encode()) for n in range(50)))
    assert won.count(True) == 1
    assert await objects.get("a/b") == str(won.index(True)).encode()


async def test_a_put_replaces_and_a_get_of_nothing_is_none(objects: Objects) -> None:
    assert await objects.get("a") is None
    await objects.put("a", b"1")
    await objects.put("a", b"2")
    assert await objects.get("a") == b"2"


async def test_what_is_written_as_a_stream_is_read_as_one(objects: Objects) -> None:
    parts = [bytes([n]) * 700_000 for n in range(5)]
    assert await objects.write("big", chunks(*parts)) == 3_500_000
    read = [chunk async for chunk in objects.read("big")]
    assert b"".join(read) == b"".join(parts)
    assert [chunk async for chunk in objects.read("nothing")] == []


async def test_a_stream_that_breaks_off_leaves_no_object(objects: Objects) -> None:
    with pytest.raises(ConnectionError):
        await objects.write("half", broken_off())
    assert await objects.get("half") is None


async def test_a_listing_holds_its_folder_and_nothing_beside_it(objects: Objects) -> None:
    for key in ("a/1", "a/2", "a/deep/3", "ab/4", "b"):
        await objects.put(key, b"xy")
    entries = [entry async for entry in objects.list("a")]
    assert {entry.key for entry in entries} == {"a/1", "a/2", "a/deep/3"}
    assert {entry.bytes for entry in entries} == {2}
    assert {entry.key async for entry in objects.list("a", after="a/1")} == {"a/2", "a/deep/3"}
    assert [entry async for entry in objects.list("none")] == []


async def test_deleting_takes_what_is_there_and_minds_nothing_else(objects: Objects) -> None:
    await objects.put("a", b"1")
    await objects.delete(["a", "never"])
    assert await objects.get("a") is None


async def test_no_url_is_signed_where_there_is_none_to_sign(objects: Objects) -> None:
    await objects.put("a", b"1")
    assert await objects.sign("a", 60) is None


async def test_a_folder_that_is_gone_is_a_store_that_does_not_answer(tmp_path: Path) -> None:
    objects = open_objects(str(tmp_path / "store"))
    await objects.put("a", b"1")
    (tmp_path / "store").rename(tmp_path / "away")
    for way in (objects.get("a"), objects.create("b", b"2"), objects.put("b", b"2"), objects.delete(["a"])):
        with pytest.raises(StoreUnavailable, match="is its disk mounted"):
            await way
    with pytest.raises(StoreUnavailable):
        _ = [entry async for entry in objects.list("")]
    assert not (tmp_path / "store").exists()
    (tmp_path / "away").rename(tmp_path / "store")
    assert await objects.get("a") == b"1"


def test_a_url_of_nothing_known_is_said_with_what_to_do() -> None:
    with pytest.raises(EnvironmentFault, match=r"jobs\.store ftp://x can't be opened"):
        open_objects("ftp://x")
