"""Files and results on their way out: in chunks, with their length and their name, never whole in memory."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from urllib.parse import quote

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cotenant.calls.desk import Content
from cotenant.errors import RequestRefused
from cotenant.gateway.answers import ClientGone, while_connected
from cotenant.gateway.visit import visit_of
from cotenant.telemetry.logs import event

LOG = logging.getLogger("cotenant.gateway")


async def download(content: Content, name: str) -> Response:
    """The answer that sends `content` as a file, called `name` unless it has a name of its own.

    Its first chunk is fetched here, so that a store that does not answer is told by a status.

    Raises:
        RequestRefused: 404, it is not there any more.
        StoreUnavailable
    """
    first = await anext(content.chunks, b"")
    if not first and content.bytes:
        raise RequestRefused("its bytes are not there any more", status=404, code="content_gone")
    return _Download(content, first, content.filename or name)


class _Download(Response):
    """Content that goes out as it comes.

    A failure in the middle leaves the answer unfinished, so the server closes the connection and the client sees that
    bytes are missing. Closes the chunks however it ends.
    """

    def __init__(self, content: Content, first: bytes, name: str) -> None:
        self.status_code = 200
        self.background = None
        head = {"content-type": content.content_type, "content-disposition": disposition(name)}
        if content.bytes is not None:
            head["content-length"] = str(content.bytes)
        # What a tenant uploaded is never to be taken for a page of this host.
        head |= {"cache-control": "no-store", "x-content-type-options": "nosniff"}
        self.raw_headers = [(key.encode(), value.encode("latin-1", "replace")) for key, value in head.items()]
        self._first = first
        self._chunks = content.chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        visit = visit_of(scope)
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            try:
                await while_connected(self._pump(scope), receive)
            except ClientGone:
                visit.outcome = "client_gone"
            except Exception as error:
                visit.outcome = "broken"
                event(LOG, "download_broke", level=logging.WARNING, error=error, request_id=visit.request_id)
        finally:
            await close(self._chunks)

    async def _pump(self, scope: Scope) -> None:
        visit = visit_of(scope)
        visit.streamed = True
        chunk: bytes | None = self._first
        while chunk is not None:
            if chunk:
                visit.chunks += 1
                await visit.send({"type": "http.response.body", "body": chunk, "more_body": True})
            chunk = await anext(self._chunks, None)
        await visit.send({"type": "http.response.body", "body": b"", "more_body": False})


async def close(chunks: AsyncIterator[bytes]) -> None:
    """End the work behind chunks that nobody takes any more."""
    aclose = getattr(chunks, "aclose", None)
    if aclose is not None:
        await aclose()


def disposition(name: str) -> str:
    """The Content-Disposition of a file called `name`: as ASCII for every client, as it is for those that can."""
    plain = "".join(letter if " " <= letter <= "~" and letter not in '"\\%' else "_" for letter in name)
    return f'attachment; filename="{plain}"' + ("" if plain == name else f"; filename*=UTF-8''{quote(name, safe='')}")
