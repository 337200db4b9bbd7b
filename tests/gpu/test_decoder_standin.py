"""The stand-in LLM is a Llama: transformers reads its checkpoint and computes the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gpukit import decoder
from gpukit.machine import device


def test_transformers_computes_the_same_tokens_from_its_checkpoint(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("safetensors")
    torch.manual_seed(0)
    shape = decoder.Shape(layers=2, hidden=64, ffn=128, heads=4, kv_heads=2, vocab=100)
    model = decoder.build(shape, "cpu", dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    assert decoder.save(model, tmp_path) == "safetensors"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    prompt = torch.tensor([[1, 5, 7, 11, 13]])
    cache = model.cache(1, 16)
    with torch.inference_mode():
        for at in range(prompt.shape[1]):
            mine = model(prompt[:, at : at + 1], torch.tensor([at]), cache)
        expected = theirs(prompt).logits[:, -1]
    torch.testing.assert_close(mine, expected, atol=1e-4, rtol=1e-4)


def test_a_checkpoint_read_again_gives_the_same_tokens(tmp_path: Path) -> None:
    where = device()
    shape = decoder.SHAPES["5M"]
    model = decoder.build(shape, where)
    decoder.save(model, tmp_path)
    again = decoder.load(shape, tmp_path, where)
    made = [decoder.Decoding(each, batch=2, length=32, graph=False).tokens(16) for each in (model, again)]
    assert made[0] == made[1]


def test_a_captured_graph_gives_the_tokens_of_single_kernels() -> None:
    where = device()
    model = decoder.build(decoder.SHAPES["5M"], where)
    plain, captured = (decoder.Decoding(model, batch=2, length=32, graph=graph) for graph in (False, True))
    assert captured.how == ("CUDA graph" if where == "cuda" else "kernel by kernel")
    assert plain.tokens(16) == captured.tokens(16)
