"""Weights to host memory and back: what sleeping means for a model of plain torch.

It is what vLLM's sleep level 1 does, in small: each weight has a pinned host copy, the device's is dropped, the
allocator's cache is given back to the driver, and waking copies over the bus. Pinned pages are kept for the next
sleep, since making them costs more than the copy.
"""

from __future__ import annotations

import gc

import torch
from torch import Tensor, nn


class Sleeper:
    """Puts a module's weights to sleep and wakes them. The module must not be used while asleep."""

    def __init__(self, module: nn.Module, device: str) -> None:
        self._module = module
        self._device = device
        self._kept: dict[str, Tensor] = {}

    def sleep(self) -> None:
        """Returns when the device's memory is given back."""
        weights = dict(self._module.named_parameters())
        for name, weight in weights.items():
            kept = self._kept.get(name)
            if kept is None:
                kept = torch.empty(weight.shape, dtype=weight.dtype, pin_memory=self._device == "cuda")
                self._kept[name] = kept
            kept.copy_(weight.data, non_blocking=True)
        settle(self._device)
        for weight in weights.values():
            weight.data = torch.empty(0, dtype=weight.dtype, device=self._device)
        give_back(self._device)

    def wake(self) -> None:
        """Returns when the weights are back."""
        for name, weight in self._module.named_parameters():
            back = torch.empty(self._kept[name].shape, dtype=weight.dtype, device=self._device)
            back.copy_(self._kept[name], non_blocking=True)
            weight.data = back
        settle(self._device)


def settle(device: str) -> None:
    """Wait until the device has done all it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def give_back(device: str) -> None:
    """Give what torch's allocator caches back to the driver; on a CPU to the kernel."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    else:
        import ctypes

        ctypes.CDLL(None).malloc_trim(0)
