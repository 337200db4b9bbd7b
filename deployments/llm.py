"""An LLM workload as a Serve application: Ray's LLMServer in a replica, answered by vLLM's own HTTP application.

`build` runs wherever Serve builds applications and must stay light: it checks what can be checked and imports
neither torch nor vLLM. The replica imports them. A call goes to vLLM's ASGI application in process; the chunks
of a streamed reply go straight to the gateway's relay, while the Serve call stays open around them, holding the
slot, the place in the queue and the way to cancel.
"""

import logging
import os
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve.deployment import Application
from ray.util import get_current_placement_group

from cotenant.calls import Call, Reply
from cotenant.calls.relay import RelaySender, Target
from cotenant.config.home import home
from cotenant.config.model import LlmSpec
from cotenant.engines.llm import asgi
from cotenant.engines.llm.config import Shape, Slice, engine_arguments, environment, llm_config
from cotenant.engines.llm.models import locate, materialise
from cotenant.telemetry.logs import configure_logs, event

LOG = logging.getLogger("cotenant.llm")


class LlmArgs(BaseModel):
    """What the Serve config gives to `build`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    spec: LlmSpec
    vram_gib: float
    slots: int
    accelerator: str


def build(args: LlmArgs) -> Application:
    """The Serve application of one LLM workload.

    Raises:
        CotenantError: the workload cannot run; whatever ran before goes on serving.
    """
    part = Slice(args.accelerator, args.vram_gib, gpu_share=1.0, cpus=1.0, slots=args.slots)
    if part.on_cpu:
        # Only here is the builder on the replica's machine: a GPU image may hold what the head's does not.
        model = locate(args.spec.model)
        shape = Shape.of_folder(Path(model.source)) if model.kind == "folder" else None
        engine_arguments(args.name, args.spec, model, part, shape)
    # The gateway logs every request already, once.
    quiet = {"enable_access_log": False}
    return serve.deployment(Replica, name="Replica", logging_config=quiet).bind(args.model_dump())


class Replica:
    """One vLLM engine and its HTTP application."""

    async def __init__(self, args: dict[str, Any]) -> None:  # type: ignore[misc]
        configure_logs()
        began = time.perf_counter()
        self._args = LlmArgs.model_validate(args)
        self._relay = RelaySender()
        self._server, self._app = await _start(self._args)
        event(LOG, "llm_engine_ready", workload=self._args.name, seconds=round(time.perf_counter() - began, 1))

    async def call(self, call: Call) -> Reply:
        """The whole reply, vLLM's error replies included."""
        return await asgi.answer(self._app, call)

    async def stream(self, call: Call, target: Target) -> None:
        """Answer into the gateway's relay; returns when the last chunk is sent."""
        await asgi.answer_into(self._app, call, await self._relay.open(target))

    async def check_health(self) -> None:
        """Raises when the engine is dead, so that Serve replaces the replica."""
        await self._server.check_health()

    async def __del__(self) -> None:
        self._relay.close()
        server = getattr(self, "_server", None)
        if server is not None:
            await server.__del__()


async def _start(args: LlmArgs) -> tuple[Any, asgi.App]:
    """Start the engine in this process's placement group; returns Ray's server and vLLM's application."""
    config = _configure(args)
    from deployments.llm_engine import start  # noqa: PLC0415 - imports torch and vLLM, which read the environment

    return await start(config, (args.spec.model, args.name))


def _configure(args: LlmArgs) -> dict[str, Any]:
    """Put the model in place, set the environment, and say what Ray's LLMServer is to run."""
    group = get_current_placement_group()
    bundle: dict[str, float] = group.bundle_specs[0] if group is not None else {"CPU": 1.0}
    part = Slice(args.accelerator, args.vram_gib, bundle.get("GPU", 1.0), bundle.get("CPU", 1.0), args.slots)
    model = locate(args.spec.model)
    os.environ.update(environment(model, part))
    source = materialise(model, home())
    shape = Shape.of_folder(Path(source)) if Path(source).is_dir() else None
    streamer = find_spec("runai_model_streamer") is not None
    arguments = engine_arguments(args.name, args.spec, model, part, shape, can_stream_weights=streamer)
    return llm_config(args.spec, part, source=source, bundle=bundle, arguments=arguments)
