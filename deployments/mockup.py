"""Serve application of a mockup workload: one deployment, `Replica`, around a `MockupEngine`.

Importing this module and building the application are light and touch no renderer; a template that is not there
fails the build, before anything that runs is replaced.
"""

import asyncio
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve.deployment import Application

from cotenant.calls import Call, Reply
from cotenant.config import MockupSpec
from cotenant.engines.mockup import template
from cotenant.gpu.terms import Terms
from deployments.replica import DEPLOYMENT, SharedReplica
from deployments.sharing import own_gpu

if TYPE_CHECKING:
    from cotenant.engines.mockup.engine import MockupEngine


class Arguments(BaseModel):
    """What the Serve config gives: what the plan grants the workload, and its spec."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    terms: Terms
    spec: MockupSpec


class Replica(SharedReplica):
    """One renderer, warm while it holds the lease on its GPU's memory."""

    async def __init__(self, arguments: dict[str, Any]) -> None:  # type: ignore[misc]
        parsed = Arguments.model_validate(arguments)
        super().__init__(parsed.terms)
        self._engine = await asyncio.to_thread(_engine, parsed.spec)
        self._share = await self._join(self._engine, own_gpu())

    async def answer(self, call: Call) -> Reply:
        async with self._share.slot(call):
            return await self._engine.call(call, lambda: self._share.lease(call))


def _engine(spec: MockupSpec) -> "MockupEngine":
    from cotenant.engines.mockup.engine import MockupEngine  # noqa: PLC0415 - heavy; the builder does without

    return MockupEngine(spec, load=False)


def build(args: Arguments) -> Application:
    """The application. Raises TemplateError if a template's file is not there."""
    for name in args.spec.templates:
        template.find(name)
    return serve.deployment(Replica, name="Replica", **DEPLOYMENT).bind(args.model_dump(mode="json"))
