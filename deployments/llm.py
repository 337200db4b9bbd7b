"""An LLM workload as a Serve application: Ray's LLMServer in a replica, answered by vLLM's own HTTP application.

`build` runs wherever Serve builds applications and must stay light: it checks what can be checked and imports
neither torch nor vLLM. The replica imports them. A call goes to vLLM's ASGI application in process; the chunks
of a streamed reply go straight to the gateway's relay, while the Serve call stays open around them, holding the
slot, the place in the queue, the lease on the GPU's memory and the way to cancel.
"""

import asyncio
import importlib
import logging
import os
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve.deployment import Application
from ray.util import get_current_placement_group

from cotenant.calls import Call, Reply
from cotenant.calls.relay import Target
from cotenant.config.home import home, keep_compiled
from cotenant.config.model import LlmSpec
from cotenant.engines.llm import asgi
from cotenant.engines.llm.config import Shape, Slice, engine_arguments, environment, llm_config
from cotenant.engines.llm.models import locate, materialise
from cotenant.gpu.terms import Terms, Tier
from cotenant.telemetry.logs import event
from cotenant.telemetry.starts import OnStage, unheard
from deployments.replica import DEPLOYMENT, SharedReplica
from deployments.sharing import gpu_of_bundle
from deployments.spare import Spare

LOG = logging.getLogger("cotenant.llm")

#: What the engine's process imports, most of it by the first of these.
_ENGINE_GPU = ("vllm.v1.engine.core", "vllm.v1.executor.ray_executor", "deployments.llm_scheduler")
_ENGINE_CPU = (
    "vllm.v1.engine.core",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.cpu_worker",
    "vllm.model_executor.model_loader",
    "deployments.llm_scheduler",
    "deployments.llm_worker",
)


class LlmArgs(BaseModel):
    """What the Serve config gives to `build`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    terms: Terms
    spec: LlmSpec


def build(args: LlmArgs) -> Application:
    """The Serve application of one LLM workload.

    Raises:
        CotenantError: the workload cannot run; whatever ran before goes on serving.
    """
    part = _slice(args.terms, cpus=1.0)
    if part.on_cpu:
        # Only here is the builder on the replica's machine: a GPU image may hold what the head's does not.
        model = locate(args.spec.model)
        shape = Shape.of_folder(Path(model.source)) if model.kind == "folder" else None
        engine_arguments(args.terms.workload, args.spec, model, part, shape)
    return serve.deployment(Replica, name="Replica", **DEPLOYMENT).bind(args.model_dump(mode="json"))


class Replica(SharedReplica):
    """One vLLM engine and its HTTP application."""

    async def __init__(self, args: dict[str, Any]) -> None:  # type: ignore[misc]
        parsed = LlmArgs.model_validate(args)
        super().__init__(parsed.terms)
        self._engine = VllmEngine(parsed)
        self._engine.prepare(early=parsed.terms.residency != "on-demand")
        self._share = await self._join(self._engine, await gpu_of_bundle(parsed.terms))

    async def answer(self, call: Call) -> Reply:
        """The whole reply, vLLM's error replies included."""
        if call.method == "GET":  # metrics and the like: no work for the GPU, and no reason to wake it
            return await asgi.answer(self._engine.app, call)
        async with self._share.lease(call):
            return await asgi.answer(self._engine.app, call)

    async def stream(self, call: Call, target: Target) -> None:
        """Answer into the gateway's relay; returns when the last chunk is sent."""
        async with self._share.answering(call), self._share.lease(call):
            await asgi.answer_into(self._engine.app, call, await self._relay.open(target))

    async def check_health(self) -> None:
        """Raises when the engine is dead, so that Serve replaces the replica."""
        await super().check_health()
        await self._engine.check()

    async def __del__(self) -> None:
        await super().__del__()
        await self._engine.stop()


class VllmEngine:
    """vLLM in its three tiers. Cold, there is no engine and no process of it."""

    def __init__(self, args: LlmArgs) -> None:
        self.on_stage: OnStage = unheard
        self._terms = args.terms
        self._spec = args.spec
        self._server: Any = None
        self._spare: Spare | None = None
        self._module: Future[Any] | None = None
        """Ray's LLM server and vLLM, imported or about to be."""
        self._app: asgi.App | None = None
        self._tier = Tier.COLD
        self._facts: list[dict[str, Any]] = []

    @property
    def app(self) -> asgi.App:
        """vLLM's HTTP application. There is none before the engine was first woken, nor while it is cold."""
        if self._app is None:
            return _cold
        return self._app

    @property
    def pids(self) -> tuple[int, ...]:
        """Processes that hold the model: on a GPU not children of this one, but Ray actors of their own."""
        return tuple(facts["pid"] for facts in self._facts)

    def memory_bytes(self) -> int | None:
        """What torch holds of the GPU; None on a CPU."""
        return None if self._terms.on_cpu else sum(facts["reserved_bytes"] for facts in self._facts)

    def prepare(self, *, early: bool) -> None:
        """Begin with what a start imports, here and in the engine's process to be, on other cores if there are any.

        Before `early` there is no budget for a second process; its imports then begin with the load.
        """
        os.environ.update(environment(locate(self._spec.model), _slice(self._terms, _bundle()["CPU"])))
        keep_compiled(os.environ)
        if early and self._spare is None:
            self._spare = Spare(_ENGINE_CPU if self._terms.on_cpu else _ENGINE_GPU)
        if self._module is None:
            # A thread, since imports would hold up everything else here for seconds.
            self._module = Future()
            Thread(target=_import, args=("deployments.llm_engine", self._module), daemon=True).start()

    async def wake(self) -> None:
        if self._tier is Tier.RESIDENT:
            return
        if self._server is None:
            await self._start()
        elif self._terms.on_cpu:
            await self._server.host_wake()
        else:
            await self._server.cuda_wake(self._spec.sleep_level)
        self._tier = Tier.RESIDENT
        self._facts = await self._server.collective_rpc("cotenant_facts")

    async def sleep(self, tier: Tier) -> None:
        if tier is Tier.COLD:
            await self.stop()
        elif self._terms.on_cpu:
            await self._server.host_sleep()
        else:
            await self._server.cuda_sleep(self._spec.sleep_level)
        self._tier = tier
        if self._server is not None:
            self._facts = await self._server.collective_rpc("cotenant_facts")

    async def check(self) -> None:
        """Raises when the engine's processes are gone."""
        if self._server is not None:
            await self._server.check_health()

    async def stop(self) -> None:
        """End the engine and its processes."""
        spare, self._spare = self._spare, None
        if spare is not None:
            spare.close()
        server, self._server, self._app, self._facts = self._server, None, None, []
        self._tier = Tier.COLD
        if server is not None:
            await server.stop()

    async def _start(self) -> None:
        began = time.perf_counter()
        self.prepare(early=True)
        spare = self._spare
        assert self._module is not None
        assert spare is not None
        config = await asyncio.to_thread(_configure, self._terms, self._spec, _bundle())
        self.on_stage("imports")
        module = await asyncio.wrap_future(self._module)
        try:
            names = (self._spec.model, self._terms.workload)
            self._server, self._app = await module.start(config, names, spare)
        finally:
            spare.close()
            self._spare = None
        (facts, *_) = await self._server.collective_rpc("cotenant_facts")
        if facts["load_ended_at"]:
            self.on_stage("weights", at=facts["load_began_at"])
            self.on_stage("warm_up", at=facts["load_ended_at"])
        event(LOG, "llm_engine_ready", workload=self._terms.workload, seconds=round(time.perf_counter() - began, 1))


async def _cold(
    scope: asgi.Message,
    receive: Callable[[], Awaitable[asgi.Message]],
    send: Callable[[asgi.Message], Awaitable[None]],
) -> None:
    """Stands in for vLLM's application while there is no engine."""
    await send({"type": "http.response.start", "status": 503, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"the engine is not loaded\n"})


def _slice(terms: Terms, cpus: float) -> Slice:
    return Slice(terms.accelerator, terms.vram_gib, terms.gpu_share, cpus, terms.slots)


def _bundle() -> dict[str, float]:
    """What this actor's placement group holds."""
    group = get_current_placement_group()
    bundle: dict[str, float] = group.bundle_specs[0] if group is not None else {}
    return {"CPU": 1.0, **bundle}


def _import(name: str, done: "Future[Any]") -> None:
    try:
        done.set_result(importlib.import_module(name))
    except BaseException as error:
        done.set_exception(error)


def _configure(terms: Terms, spec: LlmSpec, bundle: dict[str, float]) -> dict[str, Any]:
    """Put the model in place, and say what Ray's LLMServer is to run."""
    part = _slice(terms, bundle["CPU"])
    model = locate(spec.model)
    source = materialise(model, home())
    shape = Shape.of_folder(Path(source)) if Path(source).is_dir() else None
    streamer = find_spec("runai_model_streamer") is not None
    arguments = engine_arguments(terms.workload, spec, model, part, shape, can_stream_weights=streamer)
    if terms.residency == "sleep" and not terms.on_cpu:
        arguments["enable_sleep_mode"] = True
    return llm_config(spec, part, source=source, bundle=bundle, arguments=arguments)
