"""A desk that keeps everything in dicts, as far as the gateway's routes need one, and can be told to fail."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from cotenant.calls.desk import Content, Json, Page
from cotenant.errors import RequestRefused


class DictDesk:
    """Files, batches and jobs by tenant and id. `fails` is asked before anything is done; `taken` counts chunks."""

    def __init__(self) -> None:
        self.fails: Callable[[], None] = lambda: None
        self.kept: dict[str, dict[str, Json]] = defaultdict(dict)
        self.content: dict[str, bytes] = {}
        self.calls: list[tuple[Any, ...]] = []
        self.taken: list[int] = []
        self.looks = 0
        self.closed = 0
        self.job_ends_after_looks = 3
        self.content_breaks: Exception | None = None
        self._ids = itertools.count(1)

    async def create_file(
        self,
        tenant: str,
        *,
        filename: str,
        purpose: str,
        chunks: AsyncIterator[bytes],
        expires_after: Mapping[str, Any] | None = None,
    ) -> Json:
        self.fails()
        if purpose == "nonsense":
            raise RequestRefused("purpose needs to be batch", param="purpose")
        data = b""
        async for chunk in chunks:
            self.taken.append(len(chunk))
            data += chunk
            if purpose == "batch" and len(data) > 200 << 20:
                raise RequestRefused("a batch file is too large", status=413, param="file")
        made = self._keep(
            tenant,
            "file",
            status="processed",
            filename=filename,
            purpose=purpose,
            bytes=len(data),
            expiry=expires_after,
        )
        self.content[made["id"]] = data
        return made

    async def files(self, tenant: str, page: Page, *, purpose: str | None = None) -> Json:
        return self._list(tenant, "file", page, lambda one: purpose in (None, one["purpose"]))

    async def file(self, tenant: str, file_id: str) -> Json:
        return self._one(tenant, file_id)

    async def file_content(self, tenant: str, file_id: str) -> Content:
        made = self._one(tenant, file_id)
        data = self.content[file_id]
        return Content("application/jsonl", self._chunks(data), made["bytes"], made["filename"])

    async def delete_file(self, tenant: str, file_id: str) -> Json:
        self._one(tenant, file_id)
        del self.kept[tenant][file_id]
        return {"id": file_id, "object": "file", "deleted": True}

    async def create_batch(self, tenant: str, body: Mapping[str, Any]) -> Json:
        self.fails()
        self.calls.append(("create_batch", tenant, dict(body)))
        return self._keep(tenant, "batch", **body, status="validating")

    async def batches(self, tenant: str, page: Page) -> Json:
        return self._list(tenant, "batch", page)

    async def batch(self, tenant: str, batch_id: str) -> Json:
        return self._one(tenant, batch_id)

    async def cancel_batch(self, tenant: str, batch_id: str) -> Json:
        return self._changed(tenant, batch_id, status="cancelling")

    async def create_job(self, tenant: str, body: Mapping[str, Any], *, idempotency_key: str | None = None) -> Json:
        self.fails()
        self.calls.append(("create_job", tenant, dict(body), idempotency_key))
        return self._keep(tenant, "job", url=body.get("url"), status="queued")

    async def jobs(self, tenant: str, page: Page) -> Json:
        return self._list(tenant, "job", page)

    async def job(self, tenant: str, job_id: str) -> Json:
        job = self._one(tenant, job_id)
        self.looks += 1
        if job["status"] == "queued" and self.looks >= self.job_ends_after_looks:
            return self._changed(tenant, job_id, status="succeeded")
        return job

    async def job_content(self, tenant: str, job_id: str) -> Content:
        self._one(tenant, job_id)
        return Content("image/png", self._chunks(b"\x89PNG"), 4)

    async def cancel_job(self, tenant: str, job_id: str) -> Json:
        return self._changed(tenant, job_id, status="cancelled")

    async def _chunks(self, data: bytes) -> AsyncIterator[bytes]:
        try:
            for start in range(0, len(data), 1 << 16):
                yield data[start : start + (1 << 16)]
                if self.content_breaks is not None:
                    raise self.content_breaks
        finally:
            self.closed += 1

    def _keep(self, tenant: str, kind: str, **more: Any) -> Json:
        made = {"id": f"{kind}-{next(self._ids)}", "object": kind, "created_at": 1, **more}
        self.kept[tenant][made["id"]] = made
        return made

    def _one(self, tenant: str, name: str) -> Json:
        self.fails()
        if name not in self.kept[tenant]:
            raise RequestRefused(f"no {name[:64]!r} is here", status=404, code="not_found")
        return self.kept[tenant][name]

    def _changed(self, tenant: str, name: str, **changes: Any) -> Json:
        self.kept[tenant][name] = {**self._one(tenant, name), **changes}
        return self.kept[tenant][name]

    def _list(self, tenant: str, kind: str, page: Page, wanted: Callable[[Json], bool] = lambda one: True) -> Json:
        self.fails()
        found = [one for one in self.kept[tenant].values() if one["object"] == kind and wanted(one)]
        if page.order == "desc":
            found.reverse()
        start = next((at + 1 for at, one in enumerate(found) if one["id"] == page.after), 0)
        data = found[start : start + page.limit]
        return {"object": "list", "data": data, "has_more": len(found) > start + page.limit}
