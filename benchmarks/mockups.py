#!/usr/bin/env python3
"""Mockups per second: two clients through the engine against a bare loop over the same scene's render.

The bare loop only renders: same scene, same size and samples, artwork swapped each time, nothing decoded, composed
or encoded. The engine does the whole request. Both run in turn, several rounds in one process, so that the machine's
mood hits both. With `--url` a running gateway takes part as a third.

    python benchmarks/mockups.py --rounds 5 --renders 12
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import functools
import io
import json
import os
import platform
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from cotenant.calls import Call
from cotenant.config import MockupSpec
from cotenant.engines.mockup.engine import URL, MockupEngine
from cotenant.gpu.terms import Priority


def artworks(count: int) -> list[str]:
    """Base64 PNGs of 800 x 600 pixels, each another pattern."""
    made = []
    for number in range(count):
        y, x = np.mgrid[0:600, 0:800]
        pixels = np.stack([(x * (number + 3)) % 256, (y * 2 + 40 * number) % 256, (x ^ y) % 256], axis=2)
        out = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(out, "PNG", compress_level=1)
        made.append(base64.b64encode(out.getvalue()).decode())
    return made


async def clients(count: int, renders: int, one: Callable[[int], Awaitable[None]]) -> float:
    """Renders per second of `count` clients that each ask again as soon as they are answered."""
    numbers = iter(range(renders))

    async def client() -> None:
        for number in numbers:
            await one(number)

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(count)))
    return renders / (time.perf_counter() - started)


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    engine = MockupEngine(MockupSpec(templates=(arguments.template,), variant=arguments.variant))
    side, samples = arguments.size, arguments.samples
    pictures = artworks(4)
    bodies = [
        json.dumps(
            {"template": arguments.template, "artwork": art, "size": side, "samples": samples, "seed": seed}
        ).encode()
        for seed, art in enumerate(pictures)
    ]
    scene = engine._scenes[arguments.template]
    width, height = scene.slot_px(side, side)
    textures = [np.random.default_rng(n).random((height, width, 3), dtype=np.float32) for n in range(4)]

    async def bare(number: int) -> None:
        render = functools.partial(scene.render, textures[number % 4], side, side, samples=samples, seed=number % 4)
        await asyncio.wrap_future(engine._renderer.submit(render, Priority.INTERACTIVE))

    async def through_engine(number: int) -> None:
        reply = await engine.call(Call(URL, bodies[number % 4], accept="image/*"))
        assert reply.ok, reply.body

    ways: dict[str, tuple[int, Callable[[int], Awaitable[None]]]] = {
        "bare loop": (1, bare),
        "engine, 2 clients": (2, through_engine),
    }
    key = os.environ.get("COTENANT_KEY", "")
    headers = {"content-type": "application/json", "accept": "image/*"}
    http = httpx.AsyncClient(timeout=120, headers=headers | ({"authorization": f"Bearer {key}"} if key else {}))

    async def through_gateway(number: int) -> None:
        answer = await http.post(f"{arguments.url}{URL}", content=bodies[number % 4])
        assert answer.status_code == 200, answer.text

    if arguments.url:
        ways["gateway, 2 clients"] = (2, through_gateway)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for count, one in ways.values():
        await clients(count, 2, one)
    for turn in range(arguments.rounds):
        order = list(ways) if turn % 2 == 0 else list(ways)[::-1]
        for name in order:
            rates[name].append(await clients(ways[name][0], arguments.renders, ways[name][1]))
    await http.aclose()
    engine.close()
    ratios = {
        name: statistics.median(a / b for a, b in zip(rates[name], rates["bare loop"], strict=True)) for name in ways
    }
    return {
        "machine": {"cpus": os.cpu_count(), "processor": platform.processor() or platform.machine()},
        "variant": engine.variant.name,
        "template": arguments.template,
        "size": side,
        "samples": samples,
        "rounds": arguments.rounds,
        "renders_per_round": arguments.renders,
        "mockups_per_s": {name: [round(rate, 3) for rate in found] for name, found in rates.items()},
        "median_mockups_per_s": {name: round(statistics.median(found), 3) for name, found in rates.items()},
        "median_ratio_to_bare": {name: round(ratio, 3) for name, ratio in ratios.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--template", default="mug")
    parser.add_argument("--variant", default="auto", choices=("auto", "cuda", "llvm", "scalar"))
    parser.add_argument("--size", type=int, default=512, help="pixels a side (default 512)")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--renders", type=int, default=12, help="renders of each way in a round")
    parser.add_argument("--url", help="a running gateway, e.g. http://127.0.0.1:8000 (its key in COTENANT_KEY)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    found = asyncio.run(measure(arguments))
    print(f"{found['template']} {found['size']}² x {found['samples']} samples, {found['variant']}")
    print(f"{'':22}{'mockups/s':>12}{'to bare':>10}   rounds")
    for name, rates in found["mockups_per_s"].items():
        median, ratio = found["median_mockups_per_s"][name], found["median_ratio_to_bare"][name]
        print(f"{name:22}{median:>12.3f}{ratio:>10.3f}   {' '.join(f'{rate:.2f}' for rate in rates)}")
    text = json.dumps(found, indent=2)
    if arguments.json:
        arguments.json.write_text(text + "\n")
    else:
        print(text)


if __name__ == "__main__":
    main()
