"""Models under test that can be put to sleep: the stand-in LLM, vLLM, and the platform's image engine.

Each says how long a move took, in seconds, and answers the same question before and after: a move that changes the
answer lost something.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import torch

from gpukit import decoder
from gpukit.machine import ROOT
from gpukit.warmth import Sleeper, give_back, settle

_BATCH, _LENGTH = 4, 256


class Llm:
    """The stand-in LLM: made from random numbers, or read from a checkpoint."""

    def __init__(self, shape: str, device: str, folder: str | None = None) -> None:
        began = time.monotonic()
        self.shape = decoder.SHAPES[shape]
        self._device = device
        build, load = decoder.build, decoder.load
        model = build(self.shape, device) if folder is None else load(self.shape, Path(folder), device)
        self._decoding = decoder.Decoding(model, batch=_BATCH, length=_LENGTH, graph=False)
        self._sleeper = Sleeper(model, device)
        settle(device)
        self.took_s = time.monotonic() - began

    def facts(self) -> dict[str, Any]:
        weights = self.shape.parameters * 2 / 2**20
        cache = self.shape.kv_bytes_per_token * _BATCH * _LENGTH / 2**20
        return {"seconds": self.took_s, "weights_mib": weights, "cache_mib": cache, "parameters": self.shape.parameters}

    def save(self, folder: str) -> dict[str, Any]:
        return {"format": decoder.save(self._decoding.model, Path(folder))}

    def sleep(self) -> float:
        began = time.monotonic()
        self._decoding.drop_cache()
        self._sleeper.sleep()
        return time.monotonic() - began

    def wake(self) -> float:
        began = time.monotonic()
        self._sleeper.wake()
        self._decoding.make_cache()
        settle(self._device)
        return time.monotonic() - began

    def answer(self) -> str:
        """A digest of its first tokens."""
        return hashlib.sha256(json.dumps(self._decoding.tokens(8)).encode()).hexdigest()[:16]

    def drop(self) -> None:
        del self._decoding, self._sleeper
        give_back(self._device)


class Vllm:
    """vLLM on a checkpoint of the stand-in's, with the arguments that the platform gives it for a budget."""

    def __init__(self, folder: str, device: str, *, vram_gib: float, usable_gib: float) -> None:
        from cotenant.config.model import LlmSpec
        from cotenant.engines.llm import config
        from cotenant.engines.llm.models import Model

        spec = LlmSpec(model=folder, context_tokens=512)
        accelerator = "cpu" if device == "cpu" else "suite"
        part = config.Slice(accelerator, vram_gib, round(vram_gib / usable_gib, 4), cpus=2.0, slots=8)
        model = Model(folder, "folder", folder)
        shape = config.Shape.of_folder(Path(folder))
        arguments = config.engine_arguments("suite", spec, model, part, shape)
        os.environ.update(config.environment(model, part))
        # Its processes import the worker's extension by name; this file's folder and the root are on their path.
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        import vllm

        self._device = device
        self._vllm = vllm
        began = time.monotonic()
        self._engine = vllm.LLM(
            model=folder,
            skip_tokenizer_init=True,
            enable_sleep_mode=device == "cuda",
            worker_extension_cls="deployments.llm_worker.WorkerExtension",
            disable_log_stats=True,
            **{name: value for name, value in arguments.items() if name != "enable_log_requests"},
        )
        self.took_s = time.monotonic() - began

    def facts(self) -> dict[str, Any]:
        pids = [facts["pid"] for facts in self._engine.collective_rpc("cotenant_facts")]
        return {"seconds": self.took_s, "pids": pids, "version": self._vllm.__version__}

    def sleep(self, level: int = 1) -> float:
        """By vLLM's own sleep on a GPU; on a CPU, where it has none, by the platform's."""
        began = time.monotonic()
        if self._device == "cuda":
            self._engine.sleep(level=level)
        else:
            self._engine.reset_prefix_cache()
            self._engine.collective_rpc("cotenant_host_sleep")
        return time.monotonic() - began

    def wake(self, level: int = 1) -> float:
        began = time.monotonic()
        if self._device != "cuda":
            self._engine.collective_rpc("cotenant_host_wake")
        elif level == 1:
            self._engine.wake_up()
        else:
            self._engine.wake_up(tags=["weights"])
            self._engine.collective_rpc("reload_weights")
            self._engine.wake_up(tags=["kv_cache"])
        return time.monotonic() - began

    def answer(self) -> str:
        sampling = self._vllm.SamplingParams(max_tokens=8, temperature=0.0, detokenize=False, ignore_eos=True)
        prompt = {"prompt_token_ids": [1, 5, 7, 11]}
        made = self._engine.generate([prompt], sampling, use_tqdm=False)[0].outputs[0].token_ids
        return hashlib.sha256(json.dumps(list(made)).encode()).hexdigest()[:16]


class Images:
    """The platform's image engine on a diffusers folder."""

    def __init__(self, folder: str, device: str, *, vram_gib: float, usable_gib: float, side: int, home: str) -> None:
        from cotenant.config.model import ImageSpec
        from cotenant.engines.image.engine import ImageEngine
        from cotenant.gpu.terms import Terms

        self._device = device
        self._side = side
        terms = Terms(
            workload="painter",
            kind="image",
            pool="suite",
            accelerator="cpu" if device == "cpu" else "suite",
            usable_gib=usable_gib,
            vram_gib=vram_gib,
            floor_gib=min(1.0, vram_gib / 2),
            num_gpus=min(1.0, round(vram_gib / usable_gib, 4)),
            residency="sleep",
        )
        spec = ImageSpec(model=folder, steps=2, max_size_px=side, offload="none")
        began = time.monotonic()
        self._engine = ImageEngine(spec, terms, home_folder=Path(home))
        settle(device)
        self.took_s = time.monotonic() - began

    def facts(self) -> dict[str, Any]:
        return {"seconds": self.took_s, "weights_mib": self._engine.memory_bytes() / 2**20}

    def sleep(self) -> float:
        return self._park("asleep")

    def sleep_cold(self) -> float:
        return self._park("cold")

    def _park(self, tier: str) -> float:
        from cotenant.gpu.terms import Tier

        began = time.monotonic()
        asyncio.run(self._engine.sleep(Tier(tier)))
        return time.monotonic() - began

    def wake(self) -> float:
        began = time.monotonic()
        asyncio.run(self._engine.wake())
        settle(self._device)
        return time.monotonic() - began

    def answer(self) -> str:
        """A digest of a picture.

        Raises:
            RuntimeError: the engine refused.
        """
        from cotenant.calls import Call

        body = {"prompt": "a mug", "size": f"{self._side}x{self._side}", "seed": 7}
        call = Call("/v1/images/generations", json.dumps(body).encode(), accept="application/json")
        reply = asyncio.run(self._engine.call(call))
        if not reply.ok:
            raise RuntimeError(f"{reply.status}: {reply.body[:300]!r}")
        picture = base64.b64decode(json.loads(reply.body)["data"][0]["b64_json"])
        return hashlib.sha256(picture).hexdigest()[:16]


def make(kind: str, device: str, **given: Any) -> Llm | Vllm | Images:
    """The model of that kind: `llm`, `vllm` or `images`."""
    if device == "cpu":
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // 2))
    kinds: dict[str, Any] = {"llm": Llm, "vllm": Vllm, "images": Images}
    model: Llm | Vllm | Images = kinds[kind](device=device, **given)
    return model
