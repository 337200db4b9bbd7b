"""Files, batches and jobs over HTTP: OpenAI's routes for the first two and ours for the last, over a `Desk`.

Nothing is decided here: a handler reads the request, asks the desk in the name of the key's tenant, and writes down
what it said. Requests that change something are seen through even if the client leaves, because half of one helps
nobody; what only reads, sends or waits ends with the client.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response

from cotenant.calls import Reply, error_reply
from cotenant.calls.desk import Desk, Page
from cotenant.errors import RequestRefused
from cotenant.gateway.answers import Refused, ReplyAnswer, while_connected
from cotenant.gateway.bodies import parse_json, read_body
from cotenant.gateway.desk_openapi import described
from cotenant.gateway.downloads import download
from cotenant.gateway.keys import DEFAULT_TENANT
from cotenant.gateway.uploads import open_upload
from cotenant.gateway.visit import visit_of
from cotenant.gateway.waiting import pause_s, wished_wait_s

#: What the routes say where nobody serves jobs.
NO_JOBS = "this platform serves no jobs (jobs.ingresses is 0), and so no files and batches; set it to 1 and deploy"

#: How many objects a page has unless asked otherwise: as OpenAI has it.
_FILES_LISTED, _LISTED = 10_000, 20
#: Statuses of a job that will still change.
_OPEN = frozenset({"queued", "running"})
#: When to look again at a job that nobody can tell the end of.
_LOOK_AGAIN_S = 2.0
_LONGEST_LOOK_S = 60.0


def add_desk_routes(app: FastAPI, desk: Desk | None, max_body_bytes: int, *, no_desk: str = NO_JOBS) -> None:
    """Give `app` the routes of files, batches and jobs. Without a desk they answer 404, with the text `no_desk`."""
    routes = _Routes(desk, max_body_bytes, no_desk)
    for method, url, endpoint in (
        ("POST", "/v1/files", routes.create_file),
        ("GET", "/v1/files", routes.files),
        ("GET", "/v1/files/{file_id}", routes.file),
        ("DELETE", "/v1/files/{file_id}", routes.delete_file),
        ("GET", "/v1/files/{file_id}/content", routes.file_content),
        ("POST", "/v1/batches", routes.create_batch),
        ("GET", "/v1/batches", routes.batches),
        ("GET", "/v1/batches/{batch_id}", routes.batch),
        ("POST", "/v1/batches/{batch_id}/cancel", routes.cancel_batch),
        ("POST", "/v1/jobs", routes.create_job),
        ("GET", "/v1/jobs", routes.jobs),
        ("GET", "/v1/jobs/{job_id}", routes.job),
        ("DELETE", "/v1/jobs/{job_id}", routes.cancel_job),
        ("GET", "/v1/jobs/{job_id}/content", routes.job_content),
    ):
        app.add_api_route(
            url,
            endpoint,
            methods=[method],
            response_class=Response,
            include_in_schema=desk is not None,
            **described(method, url),
        )


class _Routes:
    """The handlers."""

    def __init__(self, desk: Desk | None, max_body_bytes: int, no_desk: str) -> None:
        self._desk = desk
        self._max_body_bytes = max_body_bytes
        self._no_desk = no_desk

    async def create_file(self, request: Request) -> Response:
        """Keeps a file, such as the requests of a batch."""
        desk = self._open()
        upload = await open_upload(request)
        try:
            made = await desk.create_file(
                _tenant(request),
                filename=upload.filename,
                purpose=upload.purpose,
                chunks=upload.chunks,
                expires_after=upload.expires_after,
            )
        except RequestRefused as error:
            if not upload.assumed:
                raise
            text = f"{error} (the form has its file first, so this one is taken for a {upload.purpose} file)"
            raise RequestRefused(text, status=error.status, param=error.param, code=error.code) from None
        finally:
            await upload.chunks.aclose()
        return _answer(made)

    async def files(self, request: Request) -> Response:
        """Lists the files, the newest first."""
        purpose = request.query_params.get("purpose")
        return _answer(await self._open().files(_tenant(request), _page(request, _FILES_LISTED), purpose=purpose))

    async def file(self, request: Request, file_id: str) -> Response:
        """Tells about one file."""
        return _answer(await self._open().file(_tenant(request), file_id))

    async def delete_file(self, request: Request, file_id: str) -> Response:
        """Deletes a file."""
        return _answer(await self._open().delete_file(_tenant(request), file_id))

    async def file_content(self, request: Request, file_id: str) -> Response:
        """Sends what a file holds."""
        return await download(await self._open().file_content(_tenant(request), file_id), file_id)

    async def create_batch(self, request: Request) -> Response:
        """Has the requests of a file worked through. Once this is answered they will be, whoever dies."""
        desk, body = self._open(), await self._body(request)
        return _answer(await desk.create_batch(_tenant(request), body))

    async def batches(self, request: Request) -> Response:
        """Lists the batches, the newest first."""
        return _answer(await self._open().batches(_tenant(request), _page(request)))

    async def batch(self, request: Request, batch_id: str) -> Response:
        """Tells how a batch gets on; once it has ended, which files hold its output and its errors."""
        return _answer(await self._open().batch(_tenant(request), batch_id))

    async def cancel_batch(self, request: Request, batch_id: str) -> Response:
        """Stops a batch. What is done by then is in its output file."""
        return _answer(await self._open().cancel_batch(_tenant(request), batch_id))

    async def create_job(self, request: Request) -> Response:
        """Accepts a request to any route, to be worked on when there is room. Once this is answered it will be."""
        desk, body = self._open(), await self._body(request)
        wait_s = _wait_s(request)
        key = request.headers.get("idempotency-key") or None
        job = await desk.create_job(_tenant(request), body, idempotency_key=key)
        if wait_s:
            job = await self._ended(request, desk, str(job["id"]), wait_s)
        return _job(request, job, wait_s, status=202, location=f"/v1/jobs/{job['id']}")

    async def jobs(self, request: Request) -> Response:
        """Lists the jobs that were submitted by themselves, the newest first."""
        return _answer(await self._open().jobs(_tenant(request), _page(request)))

    async def job(self, request: Request, job_id: str) -> Response:
        """Tells how a job gets on. With `Prefer: wait=N` or `wait_s=N` the answer waits for the job's end so long."""
        desk, wait_s = self._open(), _wait_s(request)
        return _job(request, await self._ended(request, desk, job_id, wait_s), wait_s)

    async def cancel_job(self, request: Request, job_id: str) -> Response:
        """Cancels a job, also in the middle of its work. One that has ended stays as it is: 409."""
        return _answer(await self._open().cancel_job(_tenant(request), job_id))

    async def job_content(self, request: Request, job_id: str) -> Response:
        """Sends what a job made, as its route would have answered it."""
        return await download(await self._open().job_content(_tenant(request), job_id), job_id)

    def _open(self) -> Desk:
        if self._desk is None:
            raise Refused(error_reply(404, self._no_desk, code="not_served"))
        return self._desk

    async def _body(self, request: Request) -> dict[str, Any]:
        return parse_json(request.headers, await read_body(request, self._max_body_bytes))

    async def _ended(self, request: Request, desk: Desk, job_id: str, wait_s: float) -> dict[str, Any]:
        """The job once it has ended or `wait_s` are over."""
        tenant, loop = _tenant(request), asyncio.get_running_loop()

        async def look() -> dict[str, Any]:
            began_s = loop.time()
            while True:
                job = await desk.job(tenant, job_id)
                waited_s = loop.time() - began_s
                if job["status"] not in _OPEN or waited_s >= wait_s:
                    return job
                await asyncio.sleep(min(pause_s(waited_s), wait_s - waited_s))

        return await while_connected(look(), request.receive) if wait_s else await look()


def _tenant(request: Request) -> str:
    """Whose key it is; where no key is asked for, the tenant that jobs without one have."""
    return visit_of(request.scope).tenant or DEFAULT_TENANT


def _page(request: Request, default: int = _LISTED) -> Page:
    """The page that the query asks for; the desk knows which there can be. Raises RequestRefused."""
    query = request.query_params
    limit = query.get("limit", str(default))
    if not (limit.isascii() and limit.isdigit() and len(limit) < 10):
        text = f"limit needs a whole number, 1 or more, got {limit[:32]!r}"
        raise RequestRefused(text, param="limit", code="invalid_value")
    return Page(int(limit), query.get("after") or None, query.get("order", "desc"))


def _wait_s(request: Request) -> float:
    return wished_wait_s(request.query_params.get("wait_s"), request.headers.getlist("prefer"))


def _job(
    request: Request, job: Mapping[str, Any], wait_s: float, *, status: int = 200, location: str | None = None
) -> Response:
    headers = {} if location is None else {"location": location}
    if job["status"] in _OPEN:
        headers["retry-after"] = str(look_again_s(job))
    if wait_s and "wait_s" not in request.query_params:
        headers["preference-applied"] = f"wait={wait_s:g}"
    return _answer(job, status=status, headers=headers)


def look_again_s(job: Mapping[str, Any]) -> int:
    """Seconds after which to ask for an open job again: about when it should have ended, where that can be told."""
    estimate_s = job.get("estimate_s")
    wait_s = estimate_s if isinstance(estimate_s, (int, float)) else _LOOK_AGAIN_S
    return max(1, math.ceil(min(wait_s, _LONGEST_LOOK_S)))


def _answer(body: Mapping[str, Any], *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return ReplyAnswer(Reply(status, orjson.dumps(body), headers=dict(headers or {})))
