"""What GPUs and processes this machine has: one protocol, NVML and /proc behind it, and a twin in memory."""

from __future__ import annotations

from cotenant.gpu.probe.nvml import count_gpus
from cotenant.gpu.probe.protocol import Gpu, GpuProbe, GpuProcess, GpuSample, Processes

__all__ = ["Gpu", "GpuProbe", "GpuProcess", "GpuSample", "Processes", "count_gpus"]
