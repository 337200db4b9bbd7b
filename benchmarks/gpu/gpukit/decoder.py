"""A Llama of plain torch with random weights: the stand-in for an LLM where vLLM is not at hand.

Its architecture, parameter names and arithmetic are Llama's (RMSNorm, rotary embedding by half rotation, grouped
query attention, SwiGLU, tied embedding), so a checkpoint of it is one that vLLM and transformers load. It decodes
greedily with a static KV cache; on CUDA one step is captured as a CUDA graph, as engines do, since launching its
kernels one by one would measure the CPU. It has no paging, no batching of strangers and no scheduler: it stands in
for what an LLM does to a GPU, not for an engine.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

_EPSILON = 1e-5
_THETA = 10_000.0
LABEL = "stand-in LLM (Llama of plain torch, random weights)"


@dataclass(frozen=True)
class Shape:
    """The model's sizes. Weights are bfloat16."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    vocab: int = 32_000

    @property
    def head(self) -> int:
        return self.hidden // self.heads

    @property
    def parameters(self) -> int:
        """Weights, the tied embedding once."""
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * self.kv_heads * self.head
        layer = attention + 3 * self.hidden * self.ffn + 2 * self.hidden
        return self.layers * layer + self.vocab * self.hidden + self.hidden

    @property
    def kv_bytes_per_token(self) -> int:
        return 2 * self.layers * self.kv_heads * self.head * 2


SHAPES = {
    "5M": Shape(layers=4, hidden=256, ffn=704, heads=8, kv_heads=4, vocab=8_000),
    "0.5B": Shape(layers=16, hidden=1536, ffn=4608, heads=24, kv_heads=8),
    "1B": Shape(layers=16, hidden=2048, ffn=8192, heads=32, kv_heads=8),
}


class Where(NamedTuple):
    """Where the new tokens stand: their positions, the rotation there, and which positions each may look at."""

    at: Tensor
    cos: Tensor
    sin: Tensor
    mask: Tensor


class Norm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + _EPSILON)
        return self.weight * wide.to(x.dtype)


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.q_proj = nn.Linear(shape.hidden, shape.heads * shape.head, bias=False)
        self.k_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head, bias=False)
        self.v_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head, bias=False)
        self.o_proj = nn.Linear(shape.heads * shape.head, shape.hidden, bias=False)

    def forward(self, x: Tensor, where: Where, cache: Tensor) -> Tensor:
        """`x` is (batch, new, hidden), `cache` (2, batch, kv heads, length, head)."""
        batch, new, _ = x.shape
        shape = self.shape
        group = shape.heads // shape.kv_heads
        q = self.q_proj(x).view(batch, new, shape.heads, shape.head).transpose(1, 2)
        k = self.k_proj(x).view(batch, new, shape.kv_heads, shape.head).transpose(1, 2)
        v = self.v_proj(x).view(batch, new, shape.kv_heads, shape.head).transpose(1, 2)
        cache[0].index_copy_(2, where.at, _rotated(k, where))
        cache[1].index_copy_(2, where.at, v)
        # The queries that share a key head stand in one column, so that no key is copied.
        columns = _rotated(q, where).reshape(batch, shape.kv_heads, group * new, shape.head)
        attended = functional.scaled_dot_product_attention(
            columns, cache[0], cache[1], attn_mask=where.mask.repeat(group, 1)
        )
        joined = attended.reshape(batch, shape.heads, new, shape.head).transpose(1, 2)
        out: Tensor = self.o_proj(joined.reshape(batch, new, shape.heads * shape.head))
        return out


class Mlp(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.ffn, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.ffn, bias=False)
        self.down_proj = nn.Linear(shape.ffn, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = Mlp(shape)
        self.input_layernorm = Norm(shape.hidden)
        self.post_attention_layernorm = Norm(shape.hidden)

    def forward(self, x: Tensor, where: Where, cache: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), where, cache)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Body(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = Norm(shape.hidden)


class Llama(nn.Module):
    """The weights, with transformers' names."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Body(shape)

    def forward(self, tokens: Tensor, at: Tensor, cache: Tensor) -> Tensor:
        """Logits (batch, vocab) after the last of `tokens` (batch, new), which stand at the positions `at`."""
        length = cache.shape[-2]
        frequencies = _THETA ** (-torch.arange(0, self.shape.head, 2, device=at.device).float() / self.shape.head)
        angles = torch.outer(at.float(), frequencies).repeat(1, 2)
        x = self.model.embed_tokens(tokens)
        mask = torch.arange(length, device=at.device)[None, :] <= at[:, None]
        where = Where(at, angles.cos().to(x.dtype), angles.sin().to(x.dtype), mask)
        for index, layer in enumerate(self.model.layers):
            x = layer(x, where, cache[index])
        return functional.linear(self.model.norm(x[:, -1]), self.model.embed_tokens.weight)

    def cache(self, batch: int, length: int) -> Tensor:
        """An empty KV cache."""
        shape, weight = self.shape, self.model.embed_tokens.weight
        size = (shape.layers, 2, batch, shape.kv_heads, length, shape.head)
        return torch.zeros(size, dtype=weight.dtype, device=weight.device)


def _rotated(x: Tensor, where: Where) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return x * where.cos + torch.cat((-right, left), dim=-1) * where.sin


def build(shape: Shape, device: str, *, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Llama:
    """The model with random weights, the same for the same seed and device."""
    model = empty(shape, dtype=dtype).to_empty(device=device)
    generator = torch.Generator(device=device).manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("norm.weight"):
                weight.fill_(1.0)
            else:
                weight.normal_(0.0, 0.02, generator=generator)
    return model.eval().requires_grad_(requires_grad=False)


def empty(shape: Shape, *, dtype: torch.dtype = torch.bfloat16) -> Llama:
    """The model without memory for its weights."""
    with torch.device("meta"):
        return Llama(shape).to(dtype).eval().requires_grad_(requires_grad=False)


def save(model: Llama, folder: Path) -> str:
    """Write a checkpoint as transformers and vLLM read it. Returns its format: safetensors, or torch's own without."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(model.shape), indent=2))
    weights = {name: weight.detach().cpu().contiguous() for name, weight in model.state_dict().items()}
    try:
        from safetensors.torch import save_file
    except ImportError:
        torch.save(weights, folder / "model.pt")
        return "torch"
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return "safetensors"


def load(shape: Shape, folder: Path, device: str) -> Llama:
    """The model from a checkpoint, straight to the device."""
    model = empty(shape)
    weights: dict[str, Tensor]
    if (folder / "model.safetensors").exists():
        from safetensors.torch import load_file

        weights = load_file(folder / "model.safetensors", device=device)
    else:
        weights = torch.load(folder / "model.pt", map_location=device, mmap=True, weights_only=True)
    model.load_state_dict(weights, assign=True)
    return model.requires_grad_(requires_grad=False)


def config(shape: Shape) -> dict[str, Any]:
    """transformers' `config.json` for it."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head,
        "vocab_size": shape.vocab,
        "max_position_embeddings": 2048,
        "hidden_act": "silu",
        "rms_norm_eps": _EPSILON,
        "rope_theta": _THETA,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    }


class Decoding:
    """Greedy decoding of `batch` sequences in lockstep, over and over: `step` makes one token of each.

    A sequence begins anew, at a random token, when the cache is full. Holds weights and KV cache; `model` may be put
    to sleep between steps if `graph` is False.
    """

    def __init__(self, model: Llama, *, batch: int, length: int, graph: bool) -> None:
        self.model = model
        self.batch = batch
        self.length = length
        device = model.model.embed_tokens.weight.device
        self._cache: Tensor | None = model.cache(batch, length)
        self._tokens = torch.ones((batch, 1), dtype=torch.long, device=device)
        self._at = torch.zeros(1, dtype=torch.long, device=device)
        self._next = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self.how = "kernel by kernel"
        if graph and device.type == "cuda":
            self._capture()

    @torch.inference_mode()
    def step(self) -> Tensor:
        """One token of each sequence, (batch,) on the device; not waited for."""
        if self._next == self.length:
            self.restart()
        if self._graph is not None:
            self._graph.replay()
        else:
            self._advance()
        self._next += 1
        return self._tokens[:, 0]

    def restart(self) -> None:
        """Begin all sequences anew, with the same first token."""
        self._at.zero_()
        self._tokens.fill_(1)
        self._next = 0

    def tokens(self, count: int) -> list[list[int]]:
        """The first `count` tokens of each sequence."""
        self.restart()
        made = [self.step().clone() for _ in range(count)]
        return torch.stack(made, dim=1).tolist()

    def drop_cache(self) -> None:
        """Let go of the KV cache, as an engine does before it sleeps."""
        self._cache = None

    def make_cache(self) -> None:
        """An empty KV cache; sequences begin anew."""
        self._cache = self.model.cache(self.batch, self.length)
        self.restart()

    def _advance(self) -> None:
        assert self._cache is not None
        self._tokens.copy_(self.model(self._tokens, self._at, self._cache).argmax(-1, keepdim=True))
        self._at.add_(1)

    def _capture(self) -> None:
        """Record one step as a CUDA graph; if this torch can't, steps go kernel by kernel, and `how` says so."""
        try:
            aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.inference_mode(), torch.cuda.stream(aside):
                for _ in range(3):
                    self._advance()
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.inference_mode(), torch.cuda.graph(graph):
                self._advance()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.how = f"kernel by kernel (no CUDA graph: {str(error).splitlines()[0][:120]})"
        else:
            self._graph, self.how = graph, "CUDA graph"
        self.restart()
