#!/usr/bin/env python3
"""Cold start, load, wake and sleep of the three engines, and what they hold in each tier, side by side in one run.

    python benchmarks/warmth.py --cycles 500 --llm-cycles 20

Every engine has fresh processes of its own. Measured are, each up to the end of the first answer:

  cold start  a new process: interpreter, imports, loading
  load        the same process, gone cold: loading alone
  wake        the same process, asleep

Before it goes down it does some larger work, so that what it holds is what it holds in use.
Then the engine sleeps and wakes many times, and answers the same request after every wake: the answer must be the
same each time, and after a settling phase memory must stay flat. Memory is the private memory of the process and its
children (resident less shared pages), by which the GPU agent judges replicas of a CPU pool.

The LLM runs as in a replica, without Ray: vLLM's AsyncLLM with its engine in a process of its own. Cold, that process
is gone. Asleep it stays, without model and KV cache. `image` is the bundled pipeline of 5 MiB, next to its imports
nothing; `image-wide` is the same with about 370 MiB of random weights. On a CPU they stay mapped from their file: page
cache, not private memory.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import functools
import importlib.util
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parent.parent
MIB = 2**20
ENGINES = ("mockup", "image", "image-wide", "llm")
#: Channels of the first layer of the wide pipeline's UNet.
WIDE = 320
CONTEXT_TOKENS, SLOTS = 2048, 8
#: What counts as flat, once settled: MiB per 100 sleeps and wakes, and the part of what is held resident by which
#: any later reading may exceed the first ones.
FLAT_MIB_PER_100, FLAT_PART = 5.0, 0.05
_FIRST = 5


class Engine(Protocol):
    """What the three have in common here."""

    async def wake(self) -> None: ...

    async def asleep(self) -> None: ...

    async def cold(self) -> None: ...

    async def answer(self) -> bytes: ...

    async def work(self) -> None:
        """Something larger, so that memory is held as it is in use."""
        ...


class Mockup:
    """The mockup engine with its default templates; answers with a small render."""

    def __init__(self) -> None:
        from PIL import Image

        from cotenant.calls import Call
        from cotenant.config import MockupSpec
        from cotenant.engines.mockup.engine import URL, MockupEngine

        out = io.BytesIO()
        Image.linear_gradient("L").save(out, "PNG")
        art = base64.b64encode(out.getvalue()).decode()
        body = {"template": "mug", "artwork": art, "size": 64, "samples": 4, "seed": 1}
        self._call = Call(URL, json.dumps(body).encode(), accept="image/*")
        self._large = Call(URL, json.dumps({**body, "size": 512}).encode(), accept="image/*")
        self._engine = MockupEngine(MockupSpec(), load=False)

    async def wake(self) -> None:
        await self._engine.wake()

    async def asleep(self) -> None:
        from cotenant.gpu.terms import Tier

        await self._engine.sleep(Tier.ASLEEP)

    async def cold(self) -> None:
        from cotenant.gpu.terms import Tier

        await self._engine.sleep(Tier.COLD)

    async def answer(self) -> bytes:
        reply = await self._engine.call(self._call)
        assert reply.ok, reply.body
        return reply.body

    async def work(self) -> None:
        assert (await self._engine.call(self._large)).ok


class Picture:
    """The image engine; answers with a small picture of a given seed."""

    def __init__(self, model: str) -> None:
        from cotenant.calls import Call
        from cotenant.config import ImageSpec
        from cotenant.engines.image.engine import ImageEngine
        from cotenant.engines.image.request import GENERATIONS_URL
        from cotenant.gpu.terms import Terms

        terms = Terms(
            workload="painter", kind="image", pool="shared", accelerator="cpu",
            usable_gib=12, vram_gib=2, floor_gib=1, num_gpus=0.2, residency="sleep",
        )  # fmt: skip
        body = {"model": model, "prompt": "a red mug", "size": "64x64", "seed": 3}
        self._call = Call(GENERATIONS_URL, json.dumps(body).encode(), accept="image/png")
        self._large = Call(GENERATIONS_URL, json.dumps({**body, "size": "256x256"}).encode(), accept="image/png")
        self._engine = ImageEngine(ImageSpec(model=model, steps=2), terms, load=False)

    async def wake(self) -> None:
        await self._engine.wake()

    async def asleep(self) -> None:
        from cotenant.gpu.terms import Tier

        await self._engine.sleep(Tier.ASLEEP)

    async def cold(self) -> None:
        from cotenant.gpu.terms import Tier

        await self._engine.sleep(Tier.COLD)

    async def answer(self) -> bytes:
        reply = await self._engine.call(self._call)
        assert reply.ok, reply.body
        return reply.body

    async def work(self) -> None:
        assert (await self._engine.call(self._large)).ok


class Chat:
    """vLLM with the bundled model, configured and put to sleep as `deployments` does; answers greedily."""

    def __init__(self) -> None:
        from cotenant.config.home import home
        from cotenant.config.model import LlmSpec
        from cotenant.engines.llm.config import Shape, Slice, engine_arguments, environment
        from cotenant.engines.llm.models import locate, materialise

        spec = LlmSpec(model="smollm2-135m", context_tokens=CONTEXT_TOKENS)
        part = Slice("cpu", vram_gib=5, gpu_share=0.5, cpus=float(os.cpu_count() or 1), slots=SLOTS)
        model = locate(spec.model)
        os.environ.update(environment(model, part))
        self._source = materialise(model, home())
        shape = Shape.of_folder(Path(self._source))
        self._arguments = engine_arguments("writer", spec, model, part, shape)
        self._engine: Any = None
        self._asked = 0

    async def wake(self) -> None:
        if self._engine is None:
            self._start()
            return
        await self._engine.collective_rpc("cotenant_host_wake")
        await self._engine.wake_up(["scheduling"])

    async def asleep(self) -> None:
        await self._engine.sleep(level=0)
        assert await self._engine.reset_prefix_cache(), "vLLM still has requests"
        await self._engine.collective_rpc("cotenant_host_sleep")

    async def cold(self) -> None:
        engine, self._engine = self._engine, None
        engine.shutdown()

    async def answer(self) -> bytes:
        return await self._continued("The capital of France is", 32)

    async def work(self) -> None:
        """Prompts that fill every slot's part of the KV cache to three quarters."""
        prompts = [f"{slot} " + "word " * (CONTEXT_TOKENS * 3 // 4) for slot in range(SLOTS)]
        await asyncio.gather(*(self._continued(prompt, 1) for prompt in prompts))

    async def _continued(self, prompt: str, tokens: int) -> bytes:
        from vllm import SamplingParams

        greedy = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        self._asked += 1
        text = ""
        async for output in self._engine.generate(prompt, greedy, str(self._asked)):
            text = output.outputs[0].text
        return text.encode()

    def _start(self) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        config = AsyncEngineArgs(model=self._source, **self._arguments).create_engine_config()
        parallel = config.parallel_config
        if parallel.distributed_executor_backend == "mp" and parallel.world_size == 1:
            parallel.distributed_executor_backend = "uni"
        parallel.worker_extension_cls = "deployments.llm_worker.WorkerExtension"
        self._engine = AsyncLLM.from_vllm_config(config)


def held_mib() -> float:
    """Private memory of this process and its children."""
    import psutil

    total = 0
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        try:
            memory = process.memory_info()
        except psutil.NoSuchProcess:
            continue
        total += max(0, memory.rss - memory.shared)
    return total / MIB


async def first_answer(engine: Engine) -> tuple[float, float, bytes]:
    """Seconds to be resident, seconds to the end of the first answer, and the answer."""
    began = time.perf_counter()
    await engine.wake()
    woke = time.perf_counter()
    answer = await engine.answer()
    return woke - began, time.perf_counter() - began, answer


async def live(name: str, *, rounds: int, cycles: int, image_model: str) -> dict[str, Any]:
    """One process's life. Without rounds it ends with its first answer."""
    engine: Engine = Mockup() if name == "mockup" else Chat() if name == "llm" else Picture(image_model)
    _, _, expected = await first_answer(engine)
    found: dict[str, Any] = {"answered_at": time.monotonic()}
    if not rounds:
        return found
    timed: dict[str, list[float]] = {
        key: [] for key in ("load_s", "load_answer_s", "wake_s", "wake_answer_s", "to_cold_s", "to_asleep_s")
    }
    held: dict[str, list[float]] = {"resident": [], "asleep": [], "cold": []}
    over_cycles: dict[str, list[float]] = {"resident": [], "asleep": []}
    wakes = differed = 0

    async def down_and_up(tier: str, up: str) -> float:
        """What it held while down."""
        nonlocal wakes, differed
        began = time.perf_counter()
        await (engine.cold() if tier == "cold" else engine.asleep())
        timed[f"to_{tier}_s"].append(time.perf_counter() - began)
        down_mib = held_mib()
        seconds, to_answer, answer = await first_answer(engine)
        timed[f"{up}_s"].append(seconds)
        timed[f"{up}_answer_s"].append(to_answer)
        wakes += 1
        differed += answer != expected
        return down_mib

    for _ in range(rounds):
        for tier, up in (("cold", "load"), ("asleep", "wake")):
            await engine.work()
            held["resident"].append(held_mib())
            held[tier].append(await down_and_up(tier, up))
    for _ in range(cycles):
        over_cycles["asleep"].append(await down_and_up("asleep", "wake"))
        over_cycles["resident"].append(held_mib())
    await engine.cold()
    return found | {
        **timed,
        "held_mib": held,
        "cycles_mib": over_cycles,
        "wakes": wakes,
        "answers_that_differed": differed,
    }


def child(arguments: argparse.Namespace) -> None:
    found = asyncio.run(
        live(arguments.child, rounds=arguments.rounds, cycles=arguments.cycles, image_model=arguments.image_model)
    )
    arguments.json.write_text(json.dumps(found))


def fresh_process(name: str, folder: Path, *, rounds: int, cycles: int, image_model: str) -> dict[str, Any]:
    """What a new process found, and the seconds from before it existed to the end of its first answer."""
    out, log = folder / "found.json", folder / "log"
    command = [sys.executable, __file__, "--child", name, "--json", str(out), "--image-model", image_model]
    command += ["--rounds", str(rounds), "--cycles", str(cycles)]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    with log.open("wb") as text:
        began = time.monotonic()
        done = subprocess.run(command, stdout=text, stderr=text, env={**os.environ, "PYTHONPATH": path}, check=False)
    if done.returncode:
        sys.exit(f"{name} failed:\n{log.read_text(errors='replace')[-3000:]}")
    found: dict[str, Any] = json.loads(out.read_text())
    found["cold_start_s"] = found.pop("answered_at") - began
    return found


def wide_pipeline(folder: Path) -> Path:
    """A pipeline's folder, made by a process that takes its memory with it."""
    made = folder / "wide"
    program = "import pathlib, sys\nfrom cotenant.engines.image.tiny import build\n"
    program += "build(pathlib.Path(sys.argv[1]), width=int(sys.argv[2]))"
    subprocess.run([sys.executable, "-c", program, str(made), str(WIDE)], check=True, capture_output=True)
    return made


def flatness(series: Sequence[float]) -> dict[str, float] | None:
    """MiB per 100 cycles by least squares, and the most by which one exceeds the first ones, both once settled: after
    a fifth of the cycles. None for fewer than 10."""
    settled = list(series)[len(series) // 5 :]
    if len(settled) < 10:
        return None
    slope, _ = statistics.linear_regression(range(len(settled)), settled)
    return {
        "mib_per_100_cycles": round(slope * 100, 3),
        "max_growth_mib": round(max(settled) - statistics.median(settled[:_FIRST]), 2),
    }


def measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    cycles = arguments.llm_cycles if name == "llm" else arguments.cycles
    with tempfile.TemporaryDirectory() as folder:
        image_model = str(wide_pipeline(Path(folder))) if name == "image-wide" else arguments.image_model
        process = functools.partial(fresh_process, name, Path(folder), image_model=image_model)
        starts = [process(rounds=0, cycles=0)["cold_start_s"] for _ in range(arguments.starts - 1)]
        found = process(rounds=arguments.rounds, cycles=cycles)
    found["cold_starts_s"] = [*starts, found.pop("cold_start_s")]
    median = {key: statistics.median(found[key]) for key in found if key.endswith("_s")}
    held = {tier: statistics.median(values) for tier, values in found["held_mib"].items()}
    found["median"] = {**{key: round(value, 4) for key, value in median.items()}, "held_mib": held}
    found["ratios"] = {
        "wake_to_cold_start": round(median["wake_answer_s"] / median["cold_starts_s"], 4),
        "wake_to_load": round(median["wake_answer_s"] / median["load_answer_s"], 4),
        "asleep_to_resident": round(held["asleep"] / held["resident"], 4),
        "kept_asleep_of_loaded": round((held["asleep"] - held["cold"]) / max(1.0, held["resident"] - held["cold"]), 4),
    }
    found["flat"] = {tier: flatness(series) for tier, series in found["cycles_mib"].items()}
    return found


def passes(found: dict[str, Any]) -> bool:
    """Whether every answer was the same, and memory flat where there were cycles enough to tell."""
    most_mib = FLAT_PART * found["median"]["held_mib"]["resident"]
    flat = [one for one in found["flat"].values() if one is not None]
    return not found["answers_that_differed"] and all(
        one["mib_per_100_cycles"] <= FLAT_MIB_PER_100 and one["max_growth_mib"] <= most_mib for one in flat
    )


def show(name: str, found: dict[str, Any]) -> None:
    median, ratios, held = found["median"], found["ratios"], found["median"]["held_mib"]
    row = "  {:<22}{}".format
    print(f"\n{name}")
    print(row("to the first answer", f"cold start {median['cold_starts_s']:.2f} s, load "
              f"{median['load_answer_s']:.2f} s, wake {median['wake_answer_s']:.3f} s"))  # fmt: skip
    print(row("without the answer", f"load {median['load_s']:.2f} s, wake {median['wake_s']:.3f} s; going to sleep "
              f"{median['to_asleep_s']:.3f} s"))  # fmt: skip
    print(row("held, MiB", f"resident {held['resident']:.0f}, asleep {held['asleep']:.0f}, cold {held['cold']:.0f}"))
    print(row("ratios", f"wake / cold start {ratios['wake_to_cold_start']:.3f}, wake / load "
              f"{ratios['wake_to_load']:.3f}, asleep / resident {ratios['asleep_to_resident']:.3f}"))  # fmt: skip
    print(row("", f"of what loading adds, asleep keeps {ratios['kept_asleep_of_loaded']:.3f}"))
    print(row("same answer", f"after {found['wakes'] - found['answers_that_differed']} of {found['wakes']} wakes"))
    limit_mib = FLAT_PART * held["resident"]
    for tier, one in found["flat"].items():
        if one is not None:
            print(f"  {tier:<8} over {len(found['cycles_mib'][tier])} cycles: {one['mib_per_100_cycles']:+.2f} MiB "
                  f"per 100 (limit {FLAT_MIB_PER_100:g}), at most {one['max_growth_mib']:+.1f} MiB "
                  f"(limit {limit_mib:.0f})")  # fmt: skip
    print(f"  {'kept' if passes(found) else 'MISSED'}", flush=True)


def compiled() -> bool:
    """Whether the imports of a start find bytecode; starts compare only with it on both sides."""
    spec = importlib.util.find_spec("torch")
    return spec is not None and spec.origin is not None and Path(importlib.util.cache_from_source(spec.origin)).exists()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default="mockup,image,llm", help=f"of {', '.join(ENGINES)}; with commas")
    parser.add_argument("--cycles", type=int, default=50, help="sleeps and wakes of all but the LLM (default 50)")
    parser.add_argument("--llm-cycles", type=int, default=20, help="sleeps and wakes of the LLM (default 20)")
    parser.add_argument("--starts", type=int, default=3, help="fresh processes of each engine (default 3)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of cold and asleep (default 3)")
    parser.add_argument("--image-model", default="tiny-inpaint", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--child", choices=ENGINES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments)
        return 0
    names = arguments.engines.split(",")
    if not set(names) <= set(ENGINES):
        parser.error(f"--engines takes {', '.join(ENGINES)}; got {arguments.engines}")
    if arguments.starts < 1 or arguments.rounds < 1:
        parser.error("--starts and --rounds must be at least 1")
    found: dict[str, Any] = {
        "label": "measured",
        "machine": {"cpus": os.cpu_count(), "processor": platform.processor() or platform.machine()},
        "bytecode": compiled(),
        "engines": {},
    }
    print(f"measured; {os.cpu_count()} cores; bytecode {'compiled' if compiled() else 'NOT compiled'} beforehand")
    for name in names:
        found["engines"][name] = measure(name, arguments)
        show(name, found["engines"][name])
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if all(passes(one) for one in found["engines"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
