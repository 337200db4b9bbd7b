"""What a submission will take: jobs, bytes, time and money by workload. Pure.

Time is jobs times mean seconds over slots, as if nothing else ran. The mean is what the running ingresses measured,
where there are any that did; otherwise an assumed one, and which it is goes with the figure. Money is the share of a
GPU that the work keeps busy, times its seconds, times the list price of the node; idle time between jobs is not in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cotenant.calls import Directory, Served
from cotenant.config import Platform
from cotenant.engines.mockup.request import parse
from cotenant.engines.pictures.refusal import BadRequest
from cotenant.gpu.machines import node_usd_per_h
from cotenant.gpu.plan import Plan
from cotenant.jobs.model import Job, parse_body
from cotenant.jobs.store.records import Board, pace_of

#: Mean seconds of a job with every slot busy, where nobody has measured: measured once on two CPU cores, with two
#: renders of 512 x 512 pixels and 16 samples at once, and with 32 chats of 64 tokens (docs/measurements.md); an image's
#: is a guess.
ASSUMED_MOCKUP_S, ASSUMED_LLM_S, ASSUMED_IMAGE_S = 0.85, 8.3, 10.0
_ASSUMED_MOCKUP_WORK = 512 * 512 * 16


@dataclass(frozen=True)
class Estimate:
    """One workload's part. `usd` is None where no price is known or where this machine is paid for (`priced`)."""

    workload: str
    jobs: int
    bytes: int
    mean_s: float
    measured: bool
    slots: int
    time_s: float
    usd: float | None
    priced: bool

    def as_data(self) -> dict[str, Any]:
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in vars(self).items()}


def estimates(platform: Platform, plan: Plan | None, jobs: Iterable[Job], boards: Sequence[Board]) -> list[Estimate]:
    """What `jobs` take, by workload, the longest first. Without a `plan` there are no prices."""
    directory = Directory.of(platform)
    work: dict[str, list[tuple[int, float]]] = {}
    for job in jobs:
        body = parse_body(job.body) if job.body is not None else {}
        served = directory.route(job.url, body)
        size = job.body_ref.bytes if job.body_ref is not None else len(job.body or b"")
        work.setdefault(served.name, []).append((size, assumed_s(served, body)))
    made = [_estimate(platform, plan, directory.named(name), sizes, boards) for name, sizes in work.items()]
    return sorted(made, key=lambda each: -each.time_s)


def assumed_s(served: Served, body: Mapping[str, Any]) -> float:
    """Mean seconds of one job that nobody has measured; a mockup's grow with its pixels and samples."""
    if served.kind == "llm":
        return ASSUMED_LLM_S
    if served.kind == "image":
        return ASSUMED_IMAGE_S
    look = {name: body[name] for name in ("size", "width", "height", "samples") if name in body}
    try:
        request = parse(json.dumps({"template": "any", "artwork": "any", **look}).encode())
    except BadRequest:
        return ASSUMED_MOCKUP_S
    width, height = request.pixels
    return ASSUMED_MOCKUP_S * width * height * request.samples / _ASSUMED_MOCKUP_WORK


def _estimate(
    platform: Platform, plan: Plan | None, served: Served, sizes: Sequence[tuple[int, float]], boards: Sequence[Board]
) -> Estimate:
    count = len(sizes)
    pace = pace_of(boards, served.name)
    booking = plan.workloads.get(served.name) if plan is not None else None
    replicas = booking.placed_max if booking is not None else platform.workloads[served.name].replicas.max
    slots = pace.slots or max(1, replicas) * served.slots
    measured = pace.mean_s > 0
    mean_s = pace.mean_s if measured else sum(seconds for _, seconds in sizes) / count
    usd, priced = None, False
    if plan is not None and booking is not None:
        pool = platform.pools[booking.pool]
        per_h = node_usd_per_h(pool)
        priced = not (per_h == 0.0 and pool.usd_per_h is None)
        if per_h is not None and priced:
            share = max(booking.num_gpus, booking.vram_gib / booking.terms.usable_gib)
            gpu_s = count * mean_s / served.slots * share
            usd = gpu_s * per_h / 3600 / plan.pools[booking.pool].gpus_per_node
    return Estimate(
        workload=served.name,
        jobs=count,
        bytes=sum(size for size, _ in sizes),
        mean_s=mean_s,
        measured=measured,
        slots=slots,
        time_s=max(mean_s, count * mean_s / slots),
        usd=usd,
        priced=priced,
    )
