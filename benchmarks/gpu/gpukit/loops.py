"""Work that a process under test repeats: each `step` is one unit of it, done when it returns."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn

from gpukit import decoder
from gpukit.warmth import settle


class Loop(Protocol):
    """Work in steps."""

    @property
    def label(self) -> str:
        """What it is, for a table."""
        ...

    @property
    def per_step(self) -> float:
        """Units a step."""
        ...

    @property
    def unit(self) -> str: ...

    def step(self) -> None: ...


class Matmul:
    """Square matrix products, some a step."""

    unit = "products"

    def __init__(self, device: str, *, side: int, products: int) -> None:
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        generator = torch.Generator(device=device).manual_seed(0)
        self._a = torch.randn((side, side), dtype=dtype, device=device, generator=generator) / side**0.5
        self._out = torch.empty_like(self._a)
        self._device = device
        self.per_step = float(products)
        self.label = f"{products} products of {side} x {side}"

    def step(self) -> None:
        for _ in range(int(self.per_step)):
            torch.mm(self._a, self._a, out=self._out)
        settle(self._device)


class Decode:
    """The stand-in LLM decoding a batch: a token of each sequence a step."""

    unit = "tokens"

    def __init__(self, device: str, *, shape: str, batch: int, length: int) -> None:
        model = decoder.build(decoder.SHAPES[shape], device)
        self._decoding = decoder.Decoding(model, batch=batch, length=length, graph=True)
        self._device = device
        self.per_step = float(batch)
        self.label = f"{decoder.LABEL}, {shape}, batch {batch}, {length} tokens, {self._decoding.how}"

    def step(self) -> None:
        # To the host, as an engine does with every token that it streams.
        self._decoding.step().cpu()


class Convolutions:
    """Convolutions over a picture, elementwise work between them: where Mitsuba is missing, what a renderer does to
    a GPU's arithmetic and memory bandwidth, and no more than that."""

    unit = "pictures"
    per_step = 1.0

    def __init__(self, device: str, *, side: int, rounds: int) -> None:
        dtype = torch.float16 if device == "cuda" else torch.float32
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layers = [nn.Conv2d(32, 32, 3, padding=1) for _ in range(4)]
        self._layers = [layer.to(device=device, dtype=dtype).requires_grad_(requires_grad=False) for layer in layers]
        self._picture = torch.rand((1, 32, side, side), dtype=dtype, device=device)
        self._rounds = rounds
        self._device = device
        self.label = f"stand-in renderer (torch convolutions), {side} px, {rounds} rounds"

    @torch.inference_mode()
    def step(self) -> None:
        x = self._picture
        for _ in range(self._rounds):
            for layer in self._layers:
                x = torch.tanh(layer(x))
        x.sum().item()
        settle(self._device)


class Mockups:
    """Renders of the platform's own renderer, artwork swapped each time."""

    unit = "pictures"
    per_step = 1.0

    def __init__(self, device: str, *, side: int, samples: int) -> None:
        from gpukit.renderer import Renderer

        del device  # the renderer chooses its own back end
        self._renderer = Renderer()
        self._side, self._samples = side, samples
        self._seed = 0
        self._renderer.render(side, samples)
        self.label = f"Mitsuba {self._renderer.variant.name}, mug, {side} px, {samples} samples"

    def step(self) -> None:
        self._seed += 1
        self._renderer.render(self._side, self._samples, seed=self._seed)


_LOOPS: dict[str, Any] = {"matmul": Matmul, "decode": Decode, "convolutions": Convolutions, "mockups": Mockups}


def make(name: str, device: str, **sizes: Any) -> Loop:
    """The loop of that name, ready to step."""
    loop: Loop = _LOOPS[name](device, **sizes)
    return loop
