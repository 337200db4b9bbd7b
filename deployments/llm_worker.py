"""What an LLM replica adds to vLLM's worker: who it is, what it holds, and a sleep for where vLLM has none.

vLLM puts this class among the bases of its worker (`worker_extension_cls`), so the methods run in the process that
holds the model, wherever vLLM put it, and are reached by `collective_rpc`.

**Sleep on a CPU.** vLLM's own sleep mode is CUDA's. On a CPU the "GPU memory" is the host's, so there is nowhere to
move weights to: asleep means that the model is dropped and the pages of the KV cache are given back to the kernel.
The processes, their imports, the scheduler and the address range of the KV cache stay. Waking loads the weights again
from the model's files, which are in the page cache: a second, against half a minute for a start.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import time
from typing import Any

#: vLLM's workers by the name that ours of them has in this module.
TIMED = {
    "vllm.v1.worker.cpu_worker.CPUWorker": "TimedCpuWorker",
    "vllm.v1.worker.gpu_worker.Worker": "TimedGpuWorker",
}
_MADV_DONTNEED = 4
_PAGE = 4096


def __getattr__(name: str) -> Any:
    """vLLM's worker, noting when it loads. Made where vLLM asks for it by name, since importing the worker costs."""
    for whole, ours in TIMED.items():
        if name == ours:
            module, _, worker = whole.rpartition(".")
            made = type(name, (_Timed, getattr(importlib.import_module(module), worker)), {"__module__": __name__})
            globals()[name] = made
            return made
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Timed:
    cotenant_load_began_at = 0.0
    cotenant_load_ended_at = 0.0

    def load_model(self, *args: Any, **kwargs: Any) -> Any:
        self.cotenant_load_began_at = time.time()
        try:
            return super().load_model(*args, **kwargs)  # type: ignore[misc]
        finally:
            self.cotenant_load_ended_at = time.time()


class WorkerExtension:
    """Methods for vLLM's worker; every name is prefixed, since vLLM refuses a clash."""

    model_runner: Any
    vllm_config: Any

    def cotenant_facts(self) -> dict[str, Any]:
        """The worker's process id, the bytes that torch's CUDA allocator holds there (0 on a CPU), and when it began
        and ended to load the model (Unix seconds; 0 where that was not noted)."""
        import torch  # noqa: PLC0415 - the worker has it loaded

        reserved = torch.cuda.memory_reserved() if torch.cuda.is_available() else 0
        return {
            "pid": os.getpid(),
            "reserved_bytes": max(0, int(reserved) - _unmapped_bytes()),
            "load_began_at": getattr(self, "cotenant_load_began_at", 0.0),
            "load_ended_at": getattr(self, "cotenant_load_ended_at", 0.0),
        }

    def cotenant_host_sleep(self) -> None:
        """Drop the model and give back the KV cache's pages. Only while nothing is scheduled."""
        layers = self.vllm_config.compilation_config.static_forward_context
        # What vLLM set on a layer after it was made: its KV cache, and what the attention back end notes there.
        self._cotenant_layers = {
            name: {key: value for key, value in vars(layer).items() if not key.startswith("_")}
            for name, layer in layers.items()
            if hasattr(layer, "kv_cache")
        }
        for cache in self.model_runner.kv_caches:
            _give_back_pages(cache)
        layers.clear()
        self.model_runner.model = None
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)

    def cotenant_host_wake(self) -> None:
        """Load the model again and give its attention layers their KV cache, whose pages read as zeros."""
        from vllm.config import set_current_vllm_config  # noqa: PLC0415

        with set_current_vllm_config(self.vllm_config):
            self.model_runner.load_model()
        layers = self.vllm_config.compilation_config.static_forward_context
        for name, noted in self._cotenant_layers.items():
            layer = layers[name]
            layer.kv_cache = noted["kv_cache"]
            for key, value in noted.items():
                if not hasattr(layer, key):
                    setattr(layer, key, value)
        self._cotenant_layers = {}
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)


def _unmapped_bytes() -> int:
    """What vLLM's sleep mode took from under torch's allocator, which goes on counting it as reserved."""
    from vllm.device_allocator.cumem import CuMemAllocator  # noqa: PLC0415 - the worker has it loaded

    allocator = CuMemAllocator.instance
    if allocator is None:
        return 0
    return sum(int(data.handle[1]) for data in allocator.pointer_to_data.values() if data.is_asleep)


def _give_back_pages(tensor: Any) -> None:
    """Return the whole pages under a tensor's storage to the kernel; the addresses stay, and read as zeros."""
    storage = tensor.untyped_storage()
    start = -(-storage.data_ptr() // _PAGE) * _PAGE
    end = (storage.data_ptr() + storage.nbytes()) // _PAGE * _PAGE
    if end > start and ctypes.CDLL(None, use_errno=True).madvise(
        ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED
    ):
        raise OSError(ctypes.get_errno(), "madvise(MADV_DONTNEED) failed")
