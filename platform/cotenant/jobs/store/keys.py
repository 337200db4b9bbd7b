"""Where everything about jobs lies in the store. Pure.

Keys are safe whatever a tenant, batch or custom_id is called: each becomes a readable stem plus 128 bits of its
hash, so no name reaches a path, and different names never meet. Names that begin with an underscore are the
platform's own; no segment of a stranger's name does.

    <tenant>/inputs/<sha256>                      a large body, put there by who submits
    <tenant>/files/<file id>.json, .data          a file of `/v1/files`: its record, its content
    <tenant>/batches/<batch id>.json              a batch of `/v1/batches`
    <tenant>/jobs/<job id>.json                   a job that was submitted by itself
    <tenant>/idempotency/<key>.json               which job an Idempotency-Key stands for
    <tenant>/webhooks/<webhook id>.json           a webhook: where to, tries so far, delivered or not
    <tenant>/by-age/<kind>/<time>-<id>            that a batch or a job is listed; the newest sorts first
    <tenant>/active/<batch id>                    that a batch is being seen through
    <tenant>/<batch>/manifest.json                what the batch consists of
    <tenant>/<batch>/progress.json                how far the batch is; replaced as it goes
    <tenant>/<batch>/closing.json                 how the batch ends (completed, cancelled, expired), decided once
    <tenant>/<batch>/ended.json                   the batch's last word, written once
    <tenant>/<batch>/results/<custom_id>.json     the visible result of a job
    <tenant>/<batch>/outputs/<custom_id>-<hash>   a large reply, before the result that refers to it
    <tenant>/<batch>/attempts/<custom_id>.json    the attempts of a job that failed
    <tenant>/<batch>/dead/<custom_id>.json        why a job was given up; a result, if one comes, counts more
    _cancelled/<tenant>/<batch>[/<custom_id>]     that a batch or a job is not wanted any more
    _queued/<workload>/<time>-<job id>            jobs submitted by themselves that have no result yet, oldest first
    _put-off/<time>-<hash>                        an errand that is to be taken up again then, the first one first
    _boards/<ingress>.json                        what an ingress is at, renewed as it changes
    _runs/<time>-<ingress>                        which jobs an ingress ran in some seconds; a log, nothing hangs on it
    _lanes/<workload>                             that the workload has, or had, a topic of its own
"""

from __future__ import annotations

import re

from cotenant.jobs.model import BodyRef, Identity, digest

BOARDS = "_boards"
CANCELLED = "_cancelled"
LANES = "_lanes"
PUT_OFF = "_put-off"
QUEUED = "_queued"
RUNS = "_runs"


def result_key(identity: Identity) -> str:
    """Key of a job's visible result."""
    return f"{batch_prefix(identity.tenant, identity.batch)}/results/{segment(identity.custom_id)}.json"


def dead_key(identity: Identity) -> str:
    """Key of the word that a given-up job left."""
    return f"{batch_prefix(identity.tenant, identity.batch)}/dead/{segment(identity.custom_id)}.json"


def attempts_key(identity: Identity) -> str:
    return f"{batch_prefix(identity.tenant, identity.batch)}/attempts/{segment(identity.custom_id)}.json"


def output_key(identity: Identity, sha256: str, suffix: str) -> str:
    """Key of a large reply, named by its content too."""
    folder = f"{batch_prefix(identity.tenant, identity.batch)}/outputs"
    return f"{folder}/{segment(identity.custom_id)}-{sha256[:16]}{suffix}"


def batch_prefix(tenant: str, batch: str) -> str:
    """Folder of everything that a batch's jobs left."""
    return f"{segment(tenant)}/{segment(batch)}"


def manifest_key(tenant: str, batch: str) -> str:
    return f"{batch_prefix(tenant, batch)}/manifest.json"


def input_key(tenant: str, ref: BodyRef) -> str:
    return f"{segment(tenant)}/inputs/{ref.sha256}"


def file_keys(tenant: str, file_id: str) -> tuple[str, str]:
    """Keys of a file's record and of its content."""
    stem = f"{files_prefix(tenant)}/{segment(file_id)}"
    return f"{stem}.json", f"{stem}.data"


def files_prefix(tenant: str) -> str:
    return f"{segment(tenant)}/files"


def batch_key(tenant: str, batch_id: str) -> str:
    """Key of a batch's record."""
    return f"{batches_prefix(tenant)}/{segment(batch_id)}.json"


def batches_prefix(tenant: str) -> str:
    return f"{segment(tenant)}/batches"


def progress_key(tenant: str, batch_id: str) -> str:
    return f"{batch_prefix(tenant, batch_id)}/progress.json"


def closing_key(tenant: str, batch_id: str) -> str:
    return f"{batch_prefix(tenant, batch_id)}/closing.json"


def ended_key(tenant: str, batch_id: str) -> str:
    return f"{batch_prefix(tenant, batch_id)}/ended.json"


def active_key(tenant: str, batch_id: str) -> str:
    """Key that says that a batch is being seen through."""
    return f"{active_prefix(tenant)}/{segment(batch_id)}"


def active_prefix(tenant: str) -> str:
    return f"{segment(tenant)}/active"


def listed_key(tenant: str, kind: str, at_s: float, id: str) -> str:
    """Key by which a batch or a job is found in the list of its kind. `at_s` is Unix time."""
    return f"{listed_prefix(tenant, kind)}/{newest_first(at_s)}-{segment(id)}"


def listed_prefix(tenant: str, kind: str) -> str:
    return f"{segment(tenant)}/by-age/{kind}"


def newest_first(at_s: float) -> str:
    """Thirteen digits for a Unix time that sort the later one first."""
    return f"{10**13 - 1 - round(at_s * 1000):013d}"


def job_key(tenant: str, job_id: str) -> str:
    """Key of the record of a job that was submitted by itself."""
    return f"{jobs_prefix(tenant)}/{segment(job_id)}.json"


def jobs_prefix(tenant: str) -> str:
    return f"{segment(tenant)}/jobs"


def idempotency_key(tenant: str, key: str) -> str:
    """Key of the claim on an Idempotency-Key."""
    return f"{segment(tenant)}/idempotency/{segment(key)}.json"


def webhook_key(tenant: str, webhook_id: str) -> str:
    return f"{segment(tenant)}/webhooks/{segment(webhook_id)}.json"


def cancelled_batch_key(tenant: str, batch: str) -> str:
    """Key of the mark that nothing more of a batch is wanted."""
    return f"{CANCELLED}/{segment(tenant)}/{segment(batch)}/_all"


def cancelled_job_key(identity: Identity) -> str:
    """Key of the mark that a job is not wanted any more."""
    return f"{CANCELLED}/{batch_prefix(identity.tenant, identity.batch)}/{segment(identity.custom_id)}"


def queued_key(workload: str, queued_at_s: float, job_id: str) -> str:
    """Key that keeps a job's place: keys of one workload sort by time. `queued_at_s` is Unix time."""
    return f"{queued_prefix(workload)}/{round(queued_at_s * 1000):015d}-{job_id}"


def queued_prefix(workload: str) -> str:
    return f"{QUEUED}/{segment(workload)}"


def runs_key(at_s: float, ingress: str) -> str:
    """Key of what an ingress wrote down of its runs at `at_s` (Unix time): keys sort by time."""
    return f"{RUNS}/{round(at_s * 1000):015d}-{ingress}"


def put_off_key(due_at_s: float, errand: bytes) -> str:
    """Key of an errand that is to be taken up at `due_at_s` (Unix time)."""
    return f"{PUT_OFF}/{round(due_at_s * 1000):015d}-{digest(errand)[:32]}"


def put_off_until(key: str) -> float:
    """The time in a `put_off_key`."""
    return int(key.rsplit("/", 1)[1].split("-", 1)[0]) / 1000


def board_key(ingress: str) -> str:
    return f"{BOARDS}/{segment(ingress)}.json"


def lane_key(workload: str) -> str:
    return f"{LANES}/{workload}"


def segment(name: str) -> str:
    """One path segment for any name: what is readable of it, and its hash, which makes it unique."""
    stem = re.sub(r"[^A-Za-z0-9_]+", "-", name)[:40].strip("-_")
    return f"{stem}-{digest(name.encode())[:32]}".lstrip("-")
