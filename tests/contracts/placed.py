"""Stands for an engine where its GPU is made up: takes the arguments of the real one, and says where it was placed.

The real builder is called too, so arguments that it would refuse fail the deployment here as there.
"""

from __future__ import annotations

import importlib
import inspect
import os
import typing
from typing import Any

import ray
from ray import serve
from ray.serve.deployment import Application


def build(args: dict[str, Any]) -> Application:
    """The application: `args` are the real one's, and `kind` says which."""
    real = importlib.import_module(f"deployments.{args.pop('kind')}").build
    (parameter,) = inspect.signature(real).parameters
    real(typing.get_type_hints(real)[parameter](**args))
    return serve.deployment(Placed, name="Replica").bind()


class Placed:
    """Where a replica is, and which GPU it was given."""

    def where(self) -> dict[str, Any]:
        context = ray.get_runtime_context()
        return {"node": context.get_node_id(), "gpus": os.environ.get("CUDA_VISIBLE_DEVICES", "")}

    async def record_autoscaling_stats(self) -> dict[str, float]:
        return {}
