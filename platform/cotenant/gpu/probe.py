"""What GPUs this machine has, by NVML. The one file that touches it."""

from __future__ import annotations


def count_gpus() -> int:
    """NVIDIA GPUs of this machine; 0 where there is no driver or `nvidia-ml-py` is not installed."""
    try:
        import pynvml  # noqa: PLC0415 - an optional dependency
    except ImportError:
        return 0
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    try:
        return int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError:
        return 0
    finally:
        pynvml.nvmlShutdown()
