#!/usr/bin/env python3
"""Two classes of work on one engine: what batch jobs cost an interactive caller, and what they get of the slack.

Each engine runs in this process, behind the slots that a replica has. Two questions, each in many short rounds whose
order is turned round from one to the next, so that the machine's mood hits both sides:

1. **Latency.** An interactive client asks, waits for the answer, thinks for a moment (so that it arrives anywhere
   within a chunk) and asks again: alone, and with batch clients filling all slots. The limit is on the ratio of the
   95th percentiles over all requests: 1.25.
2. **Slack.** Batch clients alone, and beside an interactive client that asks without a pause for `--phase` seconds
   and is idle for as long, in turn. Told are the batch rate over the whole time, and over the time in which no
   interactive call was there, both against the rate alone. The aim for the latter is 0.80.

    python benchmarks/classes.py --engines mockup image
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import functools
import io
import itertools
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cotenant.calls import Call, Reply
from cotenant.config import ImageSpec, MockupSpec
from cotenant.engines.admission import Admission
from cotenant.engines.precedence import Standing, priority_of
from cotenant.gpu.terms import Terms

LATENCY_LIMIT, SLACK_AIM = 1.25, 0.80
Answer = Callable[[Call, Callable[[], AbstractAsyncContextManager[None]]], Awaitable[Reply]]


@dataclass
class Subject:
    """An engine under test: how to ask it, what the two classes ask, and how it is to be let go."""

    name: str
    what: str
    answer: Answer
    slots: int
    interactive: Callable[[int], Call]
    batch: Callable[[int], Call]
    standing: Callable[[], Standing]
    close: Callable[[], None]
    admission: Admission = field(init=False)

    def __post_init__(self) -> None:
        self.admission = Admission(self.slots)

    async def ask(self, call: Call) -> None:
        reply = await self.answer(call, lambda: self.admission.entered(priority_of(call)))
        assert reply.ok, reply.body


def mockups(arguments: argparse.Namespace) -> Subject:
    from cotenant.engines.mockup.engine import URL, MockupEngine

    engine = MockupEngine(MockupSpec(templates=("mug", "poster"), max_size_px=1024))
    artworks = [_artwork(number) for number in range(4)]

    def call(number: int, template: str, size: int, *, batch: bool) -> Call:
        art = artworks[number % len(artworks)]
        body = {"template": template, "artwork": art, "size": size, "samples": 16, "seed": number}
        return Call(URL, json.dumps(body).encode(), accept="image/*", batch=batch)

    side, large = arguments.size, arguments.batch_size
    return Subject(
        "mockup",
        f"interactive mug {side}², batch mug and poster {large}², 16 samples, {engine.variant.name}",
        engine.call,
        2,
        lambda number: call(number, "mug", side, batch=False),
        lambda number: call(number, ("mug", "poster")[number % 2], large, batch=True),
        lambda: engine.standing,
        engine.close,
    )


def pictures(arguments: argparse.Namespace) -> Subject:
    import torch

    from cotenant.engines.image.engine import ImageEngine
    from cotenant.engines.image.request import GENERATIONS_URL

    # As Ray sets it for a replica that books one CPU.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    memory = {"usable_gib": 8, "vram_gib": 4, "floor_gib": 4, "num_gpus": 0.5}
    terms = Terms(workload="painter", kind="image", pool="shared", accelerator="cpu", slots=4, **memory)
    home = tempfile.TemporaryDirectory()
    engine = ImageEngine(ImageSpec(model="tiny-inpaint", max_size_px=512), terms, home_folder=Path(home.name))
    side, steps = arguments.picture_size, arguments.steps

    def call(number: int, *, batch: bool) -> Call:
        body = {"prompt": f"a red mug, {number}", "size": f"{side}x{side}", "steps": steps}
        return Call(GENERATIONS_URL, json.dumps(body).encode(), accept="image/png", batch=batch)

    def close() -> None:
        engine.close()
        home.cleanup()

    return Subject(
        "image",
        f"tiny-inpaint {side}², {steps} steps; batch pictures up to {engine.spec.max_batch} together",
        engine.call,
        4,
        functools.partial(call, batch=False),
        functools.partial(call, batch=True),
        lambda: engine.standing,
        close,
    )


def _artwork(number: int) -> str:
    y, x = np.mgrid[0:600, 0:800]
    pixels = np.stack([(x * (number + 3)) % 256, (y * 2 + 40 * number) % 256, (x ^ y) % 256], axis=2)
    out = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(out, "PNG", compress_level=1)
    return base64.b64encode(out.getvalue()).decode()


class Jobs:
    """Batch clients that fill all slots; the moments at which their jobs end."""

    def __init__(self, subject: Subject) -> None:
        self.ended_s: list[float] = []
        self._subject = subject
        self._numbers = itertools.count()
        self._first = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        clients = [asyncio.create_task(self._client()) for _ in range(self._subject.slots)]
        try:
            await self._first.wait()
            yield
        finally:
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)

    async def _client(self) -> None:
        while True:
            await self._subject.ask(self._subject.batch(next(self._numbers)))
            self.ended_s.append(time.perf_counter())
            self._first.set()

    def window(self, first_s: float, last_s: float) -> tuple[int, float, float]:
        """Jobs between the first and the last end within these moments, and those two ends: nothing is cut."""
        within = [at for at in self.ended_s if first_s <= at <= last_s]
        # Pictures of one batch end together: they count from the end of the batch before.
        return sum(at > within[0] + 0.02 for at in within), within[0], within[-1]


async def latencies(subject: Subject, requests: int, think_s: float, chance: random.Random) -> list[float]:
    found = []
    for number in range(requests):
        await asyncio.sleep(chance.uniform(0.5, 1.5) * think_s)
        began = time.perf_counter()
        await subject.ask(subject.interactive(number))
        found.append(time.perf_counter() - began)
    return found


async def beside(subject: Subject, requests: int, think_s: float, chance: random.Random) -> list[float]:
    async with Jobs(subject).running():
        return await latencies(subject, requests, think_s, chance)


async def rate_alone(subject: Subject, seconds: float) -> float:
    jobs = Jobs(subject)
    async with jobs.running():
        began = time.perf_counter()
        await asyncio.sleep(seconds)
        done, first, last = jobs.window(began, time.perf_counter())
    return done / (last - first)


async def rate_in_the_slack(subject: Subject, seconds: float, phase_s: float) -> tuple[float, float, float]:
    """Jobs a second over all, jobs a second of slack, and the slack's part of the time."""
    jobs = Jobs(subject)
    present: list[tuple[float, float]] = []
    numbers = itertools.count()
    async with jobs.running():
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            phase = time.perf_counter()
            while time.perf_counter() - phase < phase_s:
                asked = time.perf_counter()
                await subject.ask(subject.interactive(next(numbers)))
                present.append((asked, time.perf_counter()))
            await asyncio.sleep(time.perf_counter() - phase)
        done, first, last = jobs.window(began, time.perf_counter())
    taken = sum(max(0.0, min(end, last) - max(start, first)) for start, end in present)
    return done / (last - first), done / (last - first - taken), 1 - taken / (last - first)


def percentile(values: list[float], part: float) -> float:
    return float(np.percentile(values, 100 * part))


async def measure(subject: Subject, arguments: argparse.Namespace) -> dict[str, Any]:
    chance = random.Random(1)
    for number in range(4):
        await subject.ask(subject.interactive(number))
    one = await latencies(subject, 3, 0.01, chance)
    think_s = statistics.median(one) / 2
    await beside(subject, 3, think_s, chance)
    alone: list[float] = []
    with_batch: list[float] = []
    for turn in range(arguments.rounds):
        for side in ((0, 1), (1, 0))[turn % 2]:
            if side == 0:
                alone += await latencies(subject, arguments.requests, think_s, chance)
            else:
                with_batch += await beside(subject, arguments.requests, think_s, chance)
    solo: list[float] = []
    slack: list[tuple[float, float, float]] = []
    for turn in range(arguments.slack_rounds):
        for side in ((0, 1), (1, 0))[turn % 2]:
            if side == 0:
                solo.append(await rate_alone(subject, arguments.seconds))
            else:
                slack.append(await rate_in_the_slack(subject, 2 * arguments.seconds, arguments.phase))
    standing = subject.standing()
    parts = {"p50": 0.5, "p95": 0.95}
    return {
        "engine": subject.name,
        "what": subject.what,
        "requests": len(alone),
        "alone_s": {name: percentile(alone, part) for name, part in parts.items()},
        "beside_batch_s": {name: percentile(with_batch, part) for name, part in parts.items()},
        "ratio": {name: percentile(with_batch, part) / percentile(alone, part) for name, part in parts.items()},
        "batch_alone_per_s": solo,
        "batch_in_slack_per_s": [overall for overall, _, _ in slack],
        "batch_per_s_of_slack": [per for _, per, _ in slack],
        "slack": statistics.median(part for _, _, part in slack),
        "batch_ratio": {
            "overall": statistics.median(s[0] / a for s, a in zip(slack, solo, strict=True)),
            "of_slack": statistics.median(s[1] / a for s, a in zip(slack, solo, strict=True)),
        },
        "gave_way": standing.gave_way,
        "paused_s": standing.paused_s,
    }


def told(found: dict[str, Any]) -> str:
    alone, beside_batch, ratio = (found[key] for key in ("alone_s", "beside_batch_s", "ratio"))
    rows = [f"{found['engine']}: {found['what']}; {found['requests']} requests each"]
    rows.append(f"  {'interactive latency':26}{'alone':>10}{'with batch':>12}{'ratio':>8}")
    for part in ("p50", "p95"):
        limit = f"   limit {LATENCY_LIMIT}: {'ok' if ratio[part] <= LATENCY_LIMIT else 'OVER'}" if part == "p95" else ""
        times = f"{alone[part] * 1000:>7.0f} ms{beside_batch[part] * 1000:>9.0f} ms"
        rows.append(f"  {part:26}{times}{ratio[part]:>8.2f}{limit}")
    solo, share = statistics.median(found["batch_alone_per_s"]), found["batch_ratio"]
    rows.append(f"  {'batch jobs a second':26}{'alone':>10}{'':12}{'ratio':>8}")
    for name, values, part in (
        ("over the whole time", found["batch_in_slack_per_s"], "overall"),
        (f"over the slack ({found['slack']:.0%})", found["batch_per_s_of_slack"], "of_slack"),
    ):
        aim = f"   aim {SLACK_AIM}: {'ok' if share[part] >= SLACK_AIM else 'UNDER'}" if part == "of_slack" else ""
        rows.append(f"  {name:26}{solo:>10.2f}{statistics.median(values):>12.2f}{share[part]:>8.2f}{aim}")
    rows.append(f"  batch gave way {found['gave_way']} times, {found['paused_s']:.1f} s in all")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engines", nargs="+", default=["mockup", "image"], choices=("mockup", "image"))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--requests", type=int, default=5, help="interactive requests of each kind in a round")
    parser.add_argument("--slack-rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=5, help="seconds of batch work alone in a slack round")
    parser.add_argument("--phase", type=float, default=1.5, help="seconds that interactive work is there, then idle")
    parser.add_argument("--size", type=int, default=512, help="pixels a side of an interactive mockup")
    parser.add_argument("--batch-size", type=int, default=512, help="pixels a side of a batch mockup")
    parser.add_argument("--picture-size", type=int, default=128, help="pixels a side of a picture")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps of a picture")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    makers = {"mockup": mockups, "image": pictures}
    figures = []
    for name in arguments.engines:
        subject = makers[name](arguments)
        figures.append(asyncio.run(measure(subject, arguments)))
        subject.close()
        print(told(figures[-1]), flush=True)
    machine = {"cpus": os.cpu_count(), "processor": platform.processor() or platform.machine()}
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
