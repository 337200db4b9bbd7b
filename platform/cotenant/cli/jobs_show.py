"""`cotenant jobs show`: all that is known of a job or a batch: how far it is, why it failed, where its output lies."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import click

from cotenant.calls.desk import Json
from cotenant.cli import job_desk
from cotenant.cli.amounts import time_text, when_text
from cotenant.cli.options import platform_options
from cotenant.config import Platform, load_platform
from cotenant.errors import JobError, RequestRefused
from cotenant.jobs.clerk.manifest import Manifest
from cotenant.jobs.endings import error_of, output_of, parsed, status_of
from cotenant.jobs.model import DEFAULT_TENANT, Identity, parse_line
from cotenant.jobs.store import keys
from cotenant.jobs.store.records import Records
from cotenant.jobs.store.results import ResultStore

_GONE = 404


@click.command()
@platform_options
@click.argument("name", metavar="ID")
@click.option("--tenant", default=DEFAULT_TENANT, show_default=True, help="Whose it is.")
@click.option("--batch", help="The batch that the job is of: finds it at once.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def show(*, file: Path, environment: str, name: str, tenant: str, batch: str | None, as_json: bool) -> None:
    """Show a job (job_…) or a batch: status, attempts, error, where its output lies."""
    found = asyncio.run(_find(load_platform(file, environment), tenant, name, batch))
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    from cotenant.cli.jobs_view import show_one  # noqa: PLC0415 - `--json` does without rich

    show_one(_for_people(found))


async def _find(platform: Platform, tenant: str, name: str, batch: str | None) -> Json:
    async with job_desk.opened(platform) as desk:
        if not name.startswith("job_"):
            return await _batch(desk, tenant, name)
        if batch is None:
            try:
                job = await desk.singles.shown(tenant, name)
            except RequestRefused as refused:
                if refused.status != _GONE:
                    raise
            else:
                record = await Records(desk.store.objects).job(tenant, name)
                return {**job, **(await _ending(desk.store, record.identity) if record is not None else {})}
        in_batch = await desk.find_in_batches(tenant, name, batch)
        if in_batch is None:
            where = f"batch {batch}" if batch is not None else "any batch, nor by itself"
            raise JobError(f"{name} is no job of tenant {tenant} in {where}; `cotenant jobs ls` lists what there is")
        return await _batch_job(desk, in_batch.identity)


async def _batch(desk: job_desk.Desk, tenant: str, name: str) -> Json:
    shown = await desk.batches.shown(tenant, name)
    url = desk.store.url
    for which in ("input", "output", "error"):
        file_id = shown[f"{which}_file_id"]
        shown[f"{which}_object"] = f"{url}/{keys.file_keys(tenant, file_id)[1]}" if file_id else None
    return shown


async def _batch_job(desk: job_desk.Desk, identity: Identity) -> Json:
    ending = await _ending(desk.store, identity)
    return {
        "id": identity.job_id,
        "object": "job",
        "status": ending.pop("status", None) or await _open_status(desk, identity),
        "batch": identity.batch,
        "custom_id": identity.custom_id,
        **await _asked(desk, identity),
        **ending,
    }


async def _ending(store: ResultStore, identity: Identity) -> Json:
    """What is known of how a job went: attempts, and if it ended its status, error, and where its output lies."""
    attempts = [vars(attempt) for attempt in await store.attempts(identity)]
    result = await store.result(identity)
    line = result.line if result is not None else await store.buried(identity)
    if line is None:
        return {"attempts": attempts}
    told = parsed(line)
    output = output_of(told)
    lies: Json | None = None
    if output is not None:
        where = output.object_url or f"{store.url}/{keys.result_key(identity)}"
        lies = {"content_type": output.content_type, "bytes": output.size_bytes, "object": where}
    return {"status": status_of(told), "error": error_of(told), "attempts": attempts, "output": lies}


async def _open_status(desk: job_desk.Desk, identity: Identity) -> str:
    """The status of a batch's job that has not ended."""
    boards = await Records(desk.store.objects).boards(time.time())
    if any(identity.job_id in board.running for board in boards):
        return "running"
    if identity in await desk.store.cancelled():
        return "cancelling"
    return "queued"


async def _asked(desk: job_desk.Desk, identity: Identity) -> Json:
    """Route and workload of a batch's job, as far as its manifest and its file tell."""
    data = await desk.store.manifest(identity.tenant, identity.batch)
    manifest = Manifest.load(data) if data is not None else None
    if manifest is None:
        return {}
    index = manifest.custom_ids.index(identity.custom_id)
    asked: Json = {"workload": manifest.workloads[manifest.which[index]] or None}
    try:
        record = await desk.batches.record(identity.tenant, identity.batch)
    except RequestRefused:
        return asked
    key = keys.file_keys(identity.tenant, record.input_file_id)[1]
    line = await desk.store.objects.part(key, manifest.offsets[index], manifest.lengths[index])
    if line is not None:
        asked["url"] = parse_line(line, tenant=identity.tenant, batch=identity.batch).url
    return asked


def _for_people(found: Json) -> dict[str, Any]:
    """The object with what people read: dates, one line an attempt, no empty and no inner fields."""
    told: dict[str, Any] = {}
    for name, value in found.items():
        if name == "object" or value is None:
            continue
        if name == "attempts":
            told[name] = [f"{when_text(one['at_s'])}  {one['outcome']}: {one['reason']}" for one in value]
        elif name == "errors":
            told[name] = [_problem(one) for one in value["data"]]
        elif name == "error":
            told[name] = f"{value['code']}: {value['message']}"
        elif name == "request_counts":
            told["jobs"] = f"{value['total']}, {value['completed']} completed, {value['failed']} failed"
        elif name == "output" and isinstance(value, dict):
            told[name] = [f"{part}: {text}" for part, text in value.items()]
        elif name.endswith("_at") and isinstance(value, (int, float)):
            told[name.removesuffix("_at")] = when_text(value)
        elif name.endswith("_s") and isinstance(value, (int, float)):
            told[name.removesuffix("_s")] = time_text(value)
        elif isinstance(value, dict):
            told[name] = [f"{part}: {text}" for part, text in value.items()]
        else:
            told[name] = value
    return told


def _problem(one: Json) -> str:
    return f"line {one['line']}: {one['message']}" if one["line"] else str(one["message"])
