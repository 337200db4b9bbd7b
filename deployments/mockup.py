"""Serve application of a mockup workload: one deployment, `Replica`, around a `MockupEngine`.

Importing this module and building the application are light and touch no renderer; a template that is not there
fails the build, before anything that runs is replaced.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve.deployment import Application

from cotenant.calls import Call, Reply
from cotenant.config import MockupSpec
from cotenant.engines.mockup import template
from cotenant.telemetry.logs import configure_logs


class Arguments(BaseModel):
    """What the Serve config gives: the workload's name, spec and booking."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    spec: MockupSpec
    vram_gib: float
    slots: int
    accelerator: str


class Replica:
    """One warm renderer."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        configure_logs()
        from cotenant.engines.mockup.engine import MockupEngine  # noqa: PLC0415 - heavy; the builder does without

        self._engine = MockupEngine(Arguments.model_validate(arguments).spec)

    async def call(self, call: Call) -> Reply:
        return await self._engine.call(call)


def build(args: Arguments) -> Application:
    """The application. Raises TemplateError if a template's file is not there."""
    for name in args.spec.templates:
        template.find(name)
    return serve.deployment(Replica, name="Replica").bind(args.model_dump())
