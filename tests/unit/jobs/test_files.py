"""Files: kept whole or not at all, listed in pages without reading what is not shown, gone when they expire."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from openai.types import FileDeleted, FileObject

from cotenant.calls.desk import Page
from cotenant.errors import RequestRefused, StoreUnavailable
from cotenant.jobs.desk import files as files_module
from cotenant.jobs.desk.files import Files, content_type, new_file_id
from cotenant.jobs.store.objects import MemoryObjects, Objects, open_objects
from tests.contracts.desk_house import START_S, chunks

pytestmark = pytest.mark.unit


class Clock:
    def __init__(self) -> None:
        self.s = START_S

    def __call__(self) -> float:
        return self.s


@pytest.fixture(params=["memory", "folder", "ordered"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    if request.param == "memory":
        return MemoryObjects()
    return open_objects(str(tmp_path / "store") if request.param == "folder" else "memory://")


async def kept(
    files: Files, data: bytes = b"{}\n", *, tenant: str = "acme", purpose: str = "batch", **more: str
) -> str:
    name = more.get("filename", "in.jsonl")
    return (await files.create(tenant, filename=name, purpose=purpose, chunks=chunks(data))).id


async def test_a_file_comes_back_as_it_went_and_is_an_openai_file(objects: Objects) -> None:
    files = Files(objects, now=Clock())
    data = bytes(range(256)) * 5000
    record = await files.create("acme", filename="dir/art.png", purpose="vision", chunks=chunks(data, 70_000))
    shown = FileObject.model_validate(record.shown(), strict=True)
    assert (shown.bytes, shown.filename, shown.purpose, shown.status) == (len(data), "art.png", "vision", "processed")
    assert (shown.created_at, shown.expires_at) == (START_S, None)
    content = await files.content("acme", shown.id)
    assert b"".join([chunk async for chunk in content.chunks]) == data
    assert (content.content_type, content.bytes, content.filename) == ("image/png", len(data), "art.png")


async def test_what_belongs_to_another_tenant_is_not_there(objects: Objects) -> None:
    files = Files(objects)
    file_id = await kept(files)
    for call in (files.record, files.content, files.delete):
        with pytest.raises(RequestRefused, match="there is no file") as caught:
            await call("bolt", file_id)
        assert caught.value.status == 404
    assert (await files.page("bolt", Page()))["data"] == []


@pytest.mark.parametrize("file_id", ["", "../../etc/passwd", "file-x", "\ud800", "file-" + "0" * 24, "a" * 5000])
async def test_an_id_that_is_none_is_not_found(file_id: str) -> None:
    with pytest.raises(RequestRefused) as caught:
        await Files(MemoryObjects()).record("acme", file_id)
    assert caught.value.status == 404


async def test_a_deleted_file_is_gone_with_its_content(objects: Objects) -> None:
    files = Files(objects)
    file_id = await kept(files)
    assert FileDeleted.model_validate(await files.delete("acme", file_id)).deleted
    with pytest.raises(RequestRefused):
        await files.delete("acme", file_id)
    assert [entry.key async for entry in objects.list(files_module.keys.files_prefix("acme"))] == []


async def test_an_upload_that_breaks_off_leaves_no_file(objects: Objects) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * 100
        raise ConnectionResetError("the client went away")

    files = Files(objects)
    with pytest.raises(ConnectionResetError):
        await files.create("acme", filename="a", purpose="batch", chunks=broken())
    assert (await files.page("acme", Page()))["data"] == []
    assert [entry.key async for entry in objects.list(files_module.keys.files_prefix("acme"))] == []


async def test_a_file_over_the_limit_is_refused_while_it_comes(
    objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_module, "MAX_BATCH_FILE_BYTES", 1 << 20)
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 1000
            yield b"x" * 1000

    with pytest.raises(RequestRefused, match="the file is over 1 MB; split it") as caught:
        await Files(objects).create("acme", filename="a", purpose="batch", chunks=endless())
    assert (caught.value.status, caught.value.code) == (413, "file_too_large")
    assert taken < 1.1 * (1 << 20)


async def test_an_empty_file_and_a_purpose_that_is_none_are_refused() -> None:
    files = Files(MemoryObjects())
    with pytest.raises(RequestRefused, match="the file is empty"):
        await files.create("acme", filename="a", purpose="batch", chunks=chunks(b""))
    with pytest.raises(RequestRefused, match="purpose needs one of batch, vision, user_data, got 'fine-tune'"):
        await files.create("acme", filename="a", purpose="fine-tune", chunks=chunks(b"x"))


async def test_files_expire_as_asked_and_batch_files_after_thirty_days() -> None:
    clock = Clock()
    files = Files(MemoryObjects(), now=clock)
    asked = {"anchor": "created_at", "seconds": "3600"}
    short = await files.create("acme", filename="a", purpose="vision", chunks=chunks(b"x"), expires_after=asked)
    month = await files.create("acme", filename="b", purpose="batch", chunks=chunks(b"x"))
    assert (short.expires_at, month.expires_at) == (START_S + 3600, START_S + 30 * 86_400)
    clock.s += 3599
    assert (await files.record("acme", short.id)) == short
    clock.s += 1
    assert [file["id"] for file in (await files.page("acme", Page()))["data"]] == [month.id]
    with pytest.raises(RequestRefused):
        await files.record("acme", short.id)


@pytest.mark.parametrize(
    "expiry",
    [
        {},
        {"anchor": "now", "seconds": 3600},
        {"anchor": "created_at"},
        {"anchor": "created_at", "seconds": 3599},
        {"anchor": "created_at", "seconds": 2_592_001},
        {"anchor": "created_at", "seconds": True},
        {"anchor": "created_at", "seconds": "soon"},
        {"anchor": "created_at", "seconds": 3600, "more": 1},
    ],
)
async def test_an_expiry_that_is_none_is_refused(expiry: dict[str, object]) -> None:
    with pytest.raises(RequestRefused) as caught:
        await Files(MemoryObjects()).create(
            "acme", filename="a", purpose="batch", chunks=chunks(b"x"), expires_after=expiry
        )
    assert (caught.value.param or "").startswith("expires_after")


async def test_pages_go_through_all_files_once_in_either_order(objects: Objects) -> None:
    clock = Clock()
    files = Files(objects, now=clock)
    made = []
    for n in range(7):
        clock.s += 1
        made.append(await kept(files, purpose="vision" if n % 2 else "batch"))
    for order, expected in (("desc", made[::-1]), ("asc", made)):
        seen, after = [], None
        while True:
            page = await files.page("acme", Page(limit=3, after=after, order=order))
            seen += [file["id"] for file in page["data"]]
            after = page["last_id"]
            if not page["has_more"]:
                break
        assert seen == expected
    only = await files.page("acme", Page(limit=2), purpose="vision")
    assert ([file["id"] for file in only["data"]], only["has_more"]) == (made[5:0:-2][:2], True)
    assert (await files.page("acme", Page(), purpose="assistants"))["data"] == []


class CountingObjects(MemoryObjects):
    def __init__(self) -> None:
        super().__init__()
        self.gets = 0

    async def get(self, key: str) -> bytes | None:
        self.gets += 1
        return await super().get(key)


async def test_a_page_reads_no_more_records_than_it_shows() -> None:
    objects, clock = CountingObjects(), Clock()
    files = Files(objects, now=clock)
    for _ in range(500):
        clock.s += 1
        await kept(files)
    objects.gets = 0
    page = await files.page("acme", Page(limit=20))
    assert (len(page["data"]), objects.gets) == (20, 20)


@pytest.mark.parametrize("page", [Page(limit=0), Page(limit=10_001), Page(order="up"), Page(after="file-nope")])
async def test_a_page_that_there_cannot_be_is_refused(page: Page) -> None:
    with pytest.raises(RequestRefused):
        await Files(MemoryObjects()).page("acme", page)


def test_ids_of_later_files_sort_first_and_say_their_purpose() -> None:
    ids = [new_file_id("batch", at) for at in (0.0, START_S, START_S + 0.001, START_S + 1e9)]
    assert ids == sorted(ids, reverse=True)
    assert {len(one) for one in ids} == {29}
    assert new_file_id("batch", 1.0, "a" * 12) != new_file_id("batch_output", 1.0, "a" * 12)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.jsonl", "application/jsonl"), ("a.webp", "image/webp"), ("a", "application/octet-stream")],
)
def test_a_name_tells_the_content_type(name: str, kind: str) -> None:
    assert content_type(name) == kind


async def test_a_store_that_is_down_is_said_so() -> None:
    objects = MemoryObjects()
    objects.down = True
    with pytest.raises(StoreUnavailable):
        await kept(Files(objects))
