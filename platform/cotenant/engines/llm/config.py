"""From a workload's spec and budget to vLLM's own arguments. Pure, so that a builder can refuse what cannot run.

The KV cache is sized from the budget, never from what happens to be free: `kv_cache_memory_bytes` is what the
budget leaves after all else that `cotenant.gpu.fit` counts (weights, activations, graphs, processes), and
`gpu_memory_utilization` (which vLLM still checks against free memory at its start) never exceeds the GPU share that
the replica books. So replicas on one GPU may start in any order, and together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cotenant.config.model import LlmSpec
from cotenant.engines.llm.models import Model
from cotenant.errors import PlanError
from cotenant.gpu.fit.folder import FactsMissing
from cotenant.gpu.fit.llm import CPU_PROCESSES_GIB, LlmFacts, LlmLoad
from cotenant.gpu.fit.llm import need as llm_need

#: Engine arguments that other keys of the platform file decide, and which key that is.
_DECIDED_BY = {
    "model": "llm.model",
    "served_model_name": "llm.model",
    "max_model_len": "llm.context_tokens",
    "max_num_seqs": "concurrency",
    "dtype": "llm.dtype",
    "distributed_executor_backend": "the pool's accelerator",
    "gpu_memory_utilization": "gpu.vram_gib",
}

#: Engine arguments that the platform decides, so that interactive requests come before jobs.
_OURS = ("scheduling_policy", "scheduler_cls")


_MANY_GPUS = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")


@dataclass(frozen=True)
class Slice:
    """What a replica has of its node: its memory budget, its share of a GPU, its CPU cores, its slots."""

    accelerator: str
    vram_gib: float
    gpu_share: float
    cpus: float
    slots: int

    @property
    def on_cpu(self) -> bool:
        return self.accelerator == "cpu"


class Shape:
    """What memory a model takes, read from its files: `cotenant.gpu.fit`'s facts, so that plan and engine agree."""

    @staticmethod
    def of_folder(folder: Path) -> LlmFacts | None:
        """Of a model folder; None for a layout that estimates don't know, which leaves the sizing to vLLM."""
        try:
            return LlmFacts.of_folder(folder)
        except FactsMissing:
            return None


def kv_cache_bytes(name: str, spec: LlmSpec, part: Slice, facts: LlmFacts) -> int:
    """What the budget leaves for the KV cache, in whole MiB; on a CPU no more than all slots can use.

    Raises:
        PlanError: it does not hold one request of full length.
    """
    need = llm_need(facts, LlmLoad.of(spec, part.slots), part.accelerator)
    room = need.room_for_kv(part.vram_gib)
    if room < need.least_kv_bytes():
        fit = need.fit(name, least=True)
        raise PlanError(
            f"{name} needs {fit.total_gib:.2f} GiB to serve one request of {spec.context_tokens} tokens "
            f"({fit.in_words()}), but its vram_gib is {part.vram_gib:g}; raise vram_gib or lower context_tokens"
        )
    if part.on_cpu:
        # Host memory is everybody's: take no more than all slots can fill.
        room = min(room, max(need.least_kv_bytes(), need.most_kv_bytes()))
    return room >> 20 << 20


def engine_arguments(
    name: str, spec: LlmSpec, model: Model, part: Slice, shape: LlmFacts | None, *, can_stream_weights: bool = False
) -> dict[str, Any]:
    """vLLM's engine arguments for one replica.

    `shape` is None where the weights are not on this machine; `can_stream_weights` says whether they can go from
    an object store into the GPU without a stop on disk (needs the runai_model_streamer package).

    Raises:
        PlanError: the budget is too small, or `llm.engine` sets what another key decides.
    """
    for argument in _MANY_GPUS:
        if spec.engine.get(argument, 1) != 1:
            raise PlanError(
                f"{name}: llm.engine sets {argument} {spec.engine[argument]}, but a replica books a share of one GPU; "
                "drop it and take a pool whose GPU holds the model"
            )
    for argument, decided_by in _DECIDED_BY.items():
        if argument in spec.engine:
            raise PlanError(f"{name}: llm.engine sets {argument}, which {decided_by} decides; set that and drop this")
    for argument in _OURS:
        if argument in spec.engine:
            raise PlanError(
                f"{name}: llm.engine sets {argument}, but here interactive requests come before jobs and jobs go by "
                "their priority; drop it"
            )
    arguments: dict[str, Any] = {
        "max_model_len": spec.context_tokens,
        "max_num_seqs": part.slots,
        "scheduling_policy": "priority",
        "dtype": spec.dtype,
        "enable_log_requests": False,
    }
    if part.on_cpu:
        arguments["enforce_eager"] = True
    else:
        # Four digits and never rounded up, or vLLM would ask for more than the share that Ray booked.
        arguments["gpu_memory_utilization"] = math.floor(part.gpu_share * 1e4) / 1e4
    if shape is not None:
        arguments["kv_cache_memory_bytes"] = kv_cache_bytes(name, spec, part, shape)
    elif part.on_cpu:
        # Half of the room: weights of unknown size take the rest.
        arguments["kv_cache_memory_bytes"] = max(1, int((part.vram_gib - CPU_PROCESSES_GIB) / 2 * 1024)) << 20
    if model.kind == "remote" and can_stream_weights and not part.on_cpu:
        arguments["load_format"] = "runai_streamer"
    return {**arguments, **spec.engine}


def environment(model: Model, part: Slice) -> dict[str, str]:
    """Environment variables that vLLM reads in the replica and the processes it starts.

    Prompts are never logged and nothing is reported home. On a CPU the threads are as many as the cores booked,
    and unbound: vLLM's own binding puts every engine of a node on the same core.
    """
    variables = {
        "RAYLLM_ENABLE_REQUEST_PROMPT_LOGS": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
    }
    if not model.remote:
        variables |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    if part.on_cpu:
        variables |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(max(1, round(part.cpus)))}
        # Even in eager mode the first sampled token would wait 6 s for a compiler, which a machine may not have.
        variables["TORCH_COMPILE_DISABLE"] = "1"
    return variables


def llm_config(
    spec: LlmSpec, part: Slice, *, source: str, bundle: Mapping[str, float], arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """What Ray's `LLMConfig` is made from. `source` is what the engine loads, `bundle` what the replica booked."""
    config: dict[str, Any] = {
        "model_loading_config": {"model_id": spec.model, "model_source": source},
        "engine_kwargs": dict(arguments),
        "placement_group_config": {"bundles": [dict(bundle)]},
        # vLLM's own Prometheus metrics, which its application serves, in place of Ray's slower copies.
        "log_engine_metrics": False,
    }
    if part.on_cpu:
        config["accelerator_config"] = {"kind": "cpu"}
    return config
