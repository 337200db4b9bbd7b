"""Files that come as forms, whatever their clients send first, and forms that are wrong."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from cotenant.gateway import desk_routes
from cotenant.gateway.uploads import HELD_BYTES, open_upload
from tests.unit.gateway.desks import DictDesk
from tests.unit.gateway.house import House

pytestmark = pytest.mark.unit

KIND = {"content-type": "multipart/form-data; boundary=x"}
LINE = b'{"custom_id": "a"}\n'


def text(name: str, value: str) -> bytes:
    return f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()


def file(data: bytes, filename: str = "a.jsonl", name: str = "file") -> bytes:
    head = f'--x\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n'
    return head.encode() + b"Content-Type: application/octet-stream\r\n\r\n" + data + b"\r\n"


END = b"--x--\r\n"
LARGE = bytes(range(256)) * (2 * HELD_BYTES // 256)


async def send(desk: DictDesk, form: bytes, chunk_bytes: int = 1 << 16, **headers: str) -> httpx.Response:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(form), chunk_bytes):
            yield form[start : start + chunk_bytes]

    async with House({}, desk=desk).client() as client:
        return await client.post("/v1/files", content=chunks(), headers={**KIND, **headers})


@pytest.mark.parametrize("chunk_bytes", [1, 7, 1 << 16])
@pytest.mark.parametrize(
    "form",
    [
        text("purpose", "user_data") + file(LINE * 9) + END,
        file(LINE * 9) + text("purpose", "user_data") + END,
        b"\r\n" + text("note", "x") + text("purpose", " user_data ") + file(LINE * 9) + END + b"epilogue",
    ],
    ids=["purpose first", "file first", "with more around"],
)
async def test_a_form_gives_its_file_whatever_comes_first_and_however_it_is_cut(form: bytes, chunk_bytes: int) -> None:
    desk = DictDesk()
    reply = await send(desk, form, chunk_bytes)
    assert reply.status_code == 200, reply.text
    assert (reply.json()["filename"], reply.json()["purpose"]) == ("a.jsonl", "user_data")
    assert desk.content[reply.json()["id"]] == LINE * 9


@settings(max_examples=200, deadline=None)
@given(
    pieces=st.lists(st.sampled_from([b"\r\n--x", b"\r", b"\n", b"--x--", b"-", b"x", b"\r\n", b"a" * 40]), max_size=30),
    cuts=st.lists(st.integers(1, 50), min_size=1, max_size=20),
    first=st.booleans(),
)
def test_what_looks_like_the_forms_end_is_content_however_it_is_cut(
    pieces: list[bytes], cuts: list[int], first: bool
) -> None:
    # No line of the content is the boundary itself, which a client sees to.
    content = b"".join(pieces).replace(b"\r\n--x", b"\r\n--y")
    parts = [text("purpose", "batch"), file(content)]
    form = b"".join(parts if first else parts[::-1]) + END
    messages = []
    for size in itertools.cycle(cuts):
        messages.append({"type": "http.request", "body": form[:size], "more_body": len(form) > size})
        form = form[size:]
        if not form:
            break

    async def receive() -> Any:
        return messages.pop(0)

    async def read() -> bytes:
        scope = {"type": "http", "headers": [(b"content-type", KIND["content-type"].encode())]}
        upload = await open_upload(Request(scope, receive), held_bytes=16)
        return b"".join([chunk async for chunk in upload.chunks])

    assert asyncio.run(read()) == content


@pytest.mark.parametrize("first", [True, False], ids=["purpose first", "file first"])
async def test_a_large_file_is_handed_on_as_it_comes(first: bool) -> None:
    desk = DictDesk()
    parts = [text("purpose", "batch"), file(LARGE)]
    reply = await send(desk, b"".join(parts if first else parts[::-1]) + END)
    assert reply.status_code == 200, reply.text
    assert desk.content[reply.json()["id"]] == LARGE
    assert max(desk.taken) <= 1 << 16


@pytest.mark.parametrize("first", [True, False], ids=["expiry first", "file first"])
async def test_when_a_file_expires_is_told_to_the_desk(first: bool) -> None:
    expiry = text("expires_after[anchor]", "created_at") + text("expires_after[seconds]", "3600")
    parts = [text("purpose", "batch") + expiry, file(LINE)]
    reply = await send(DictDesk(), b"".join(parts if first else parts[::-1]) + END)
    assert reply.json()["expiry"] == {"anchor": "created_at", "seconds": "3600"}


async def test_a_large_file_before_another_purpose_than_batch_is_refused_and_not_kept() -> None:
    desk = DictDesk()
    reply = await send(desk, file(LARGE) + text("purpose", "user_data") + END)
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "field_after_file")
    assert "purpose behind its file" in reply.json()["error"]["message"]
    assert desk.taken
    assert not desk.content


@pytest.mark.parametrize(
    ("form", "status", "param", "says"),
    [
        (text("purpose", "batch") + END, 400, "file", "has no file"),
        (file(LINE) + END, 400, "purpose", "has no purpose"),
        (file(LARGE) + END, 400, "purpose", "has no purpose"),
        (text("purpose", "batch") + file(LINE) + file(LINE) + END, 400, "file", "two files"),
        (text("purpose", "batch") + file(LINE), 400, None, "ends in the middle"),
        (text("purpose", "batch") + file(LINE)[:60], 400, None, "ends in the middle"),
        (b"", 400, None, "ends in the middle"),
        (END, 400, "file", "has no file"),
        (b"--y\r\n", 400, None, "can't be read"),
        (text("x", "y" * 5000) + END, 400, "x", "over 4096 bytes"),
        (b"".join(text(f"x{n}", "") for n in range(99)) + END, 400, None, "more than 64 fields"),
        (text("purpose", "batch") + file(LINE) + text("purpose", "vision") + END, 400, "purpose", "too late"),
        (
            text("purpose", "batch") + file(LINE) + text("expires_after[seconds]", "9") + END,
            *(400, "expires_after[seconds]", "too late"),
        ),
        (text("purpose", "nonsense") + file(LINE) + END, 400, "purpose", "needs to be batch"),
    ],
)
async def test_a_form_that_is_wrong_says_what_is_and_leaves_no_file(
    form: bytes, status: int, param: str | None, says: str
) -> None:
    desk = DictDesk()
    reply = await send(desk, form)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (status, param)
    assert says in error["message"]
    assert not desk.content


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "application/json"}, 415),
        ({"content-type": "multipart/form-data"}, 400),
        ({"content-type": f"multipart/form-data; boundary={'x' * 500}"}, 400),
        ({"content-encoding": "gzip"}, 415),
        ({"content-length": str(600 << 20)}, 413),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_what_is_no_form_that_can_be_taken_is_refused_before_it_is_read(
    headers: dict[str, str], status: int
) -> None:
    reply = await send(DictDesk(), text("purpose", "batch") + file(LINE) + END, **headers)
    assert reply.status_code == status, reply.text
    assert reply.json()["error"]["message"]


async def test_a_file_over_the_limit_is_refused_while_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk_routes, "open_upload", partial(open_upload, limit_bytes=1 << 20))
    desk = DictDesk()
    reply = await send(desk, text("purpose", "batch") + file(LARGE) + END)
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "file_too_large")
    assert "over 1 MiB" in reply.json()["error"]["message"]
    assert sum(desk.taken) <= 1 << 20
    assert not desk.content


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("C:\\data\\mugs.jsonl", "mugs.jsonl"),
        ("../../etc/passwd", "passwd"),
        ("été.jsonl", "été.jsonl"),
        ("a\x07b\x00.jsonl", "ab.jsonl"),
        ("", "upload"),
        ("n" * 400, "n" * 255),
    ],
)
async def test_a_filename_keeps_no_folder_and_nothing_that_cannot_be_printed(sent: str, kept: str) -> None:
    reply = await send(DictDesk(), text("purpose", "batch") + file(LINE, sent) + END)
    assert reply.json()["filename"] == kept


async def test_a_client_that_leaves_in_the_middle_of_its_file_leaves_none() -> None:
    desk = DictDesk()
    house = House({}, desk=desk)
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": text("purpose", "batch") + file(LARGE)[:-9], "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def sent(message: Any) -> None: ...

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": "/v1/files", "raw_path": b"/v1/files", "query_string": b"", "root_path": "",
        "headers": [(b"host", b"localhost"), (b"content-type", KIND["content-type"].encode())],
        "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1),
    }  # fmt: skip
    await asyncio.wait_for(house.app(scope, receive, sent), 5)
    assert sum(desk.taken) > HELD_BYTES
    assert not desk.content
    assert house.count("requests_total", workload="", route="/v1/files", status="499", tenant="") == 1
