"""Serve application of an image workload: one deployment, `Replica`, around an `ImageEngine`.

Importing this module and building the application are light and touch no torch; a local pipeline folder that is not
there fails the build, before anything that runs is replaced.
"""

import asyncio
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve.deployment import Application

from cotenant.calls import Call, Reply
from cotenant.config import ImageSpec
from cotenant.engines.image.models import locate
from cotenant.gpu.terms import Terms
from deployments.replica import DEPLOYMENT, SharedReplica
from deployments.sharing import own_gpu

if TYPE_CHECKING:
    from cotenant.engines.image.engine import ImageEngine


class ImageArgs(BaseModel):
    """What the Serve config gives: the replica's terms and the workload's spec."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    terms: Terms
    spec: ImageSpec


class Replica(SharedReplica):
    """One pipeline, warm while it holds the lease on its GPU's memory."""

    async def __init__(self, arguments: dict[str, Any]) -> None:  # type: ignore[misc]
        args = ImageArgs.model_validate(arguments)
        super().__init__(args.terms)
        self._engine = await asyncio.to_thread(_engine, args)
        self._share = await self._join(self._engine, own_gpu())

    async def answer(self, call: Call) -> Reply:
        async with self._share.slot(call):
            return await self._engine.call(call, lambda: self._share.lease(call))


def _engine(args: ImageArgs) -> "ImageEngine":
    from cotenant.engines.image.engine import ImageEngine  # noqa: PLC0415 - heavy; the builder does without

    return ImageEngine(args.spec, args.terms, load=False)


def build(args: ImageArgs) -> Application:
    """The application. Raises EnvironmentFault if a local pipeline folder is not usable."""
    if args.terms.on_cpu:
        # Only here is the builder on the replica's machine: a GPU image may hold what the head's does not.
        locate(args.spec.model)
    return serve.deployment(Replica, name="Replica", **DEPLOYMENT).bind(args.model_dump(mode="json"))
