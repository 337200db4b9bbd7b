"""The platform file: typed models, strict loading, JSON schema. Pure."""

from cotenant.config.gke import Gke
from cotenant.config.load import DEFAULT_ENVIRONMENT, DEFAULT_FILE, environments, load_platform
from cotenant.config.model import (
    Gateway,
    GpuBudget,
    ImageSpec,
    Jobs,
    Kind,
    LlmSpec,
    MockupSpec,
    Nodes,
    Platform,
    Pool,
    Replicas,
    Workload,
)
from cotenant.config.spill import Spill

__all__ = [
    "DEFAULT_ENVIRONMENT",
    "DEFAULT_FILE",
    "Gateway",
    "Gke",
    "GpuBudget",
    "ImageSpec",
    "Jobs",
    "Kind",
    "LlmSpec",
    "MockupSpec",
    "Nodes",
    "Platform",
    "Pool",
    "Replicas",
    "Spill",
    "Workload",
    "environments",
    "load_platform",
]
