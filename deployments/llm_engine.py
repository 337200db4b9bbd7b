"""The part of an LLM replica that imports Ray's LLM server and vLLM: seconds of imports, so only a replica does.

Ray's `LLMServer` owns the engine (download, configuration, placement, health). Six things are set otherwise here: both
names of the workload are served, files that are on this machine are not fetched by a task, on a CPU the engine runs
its model in its own process instead of in a further one, vLLM's worker gets the methods of `deployments.llm_worker`,
its scheduler is `deployments.llm_scheduler` and learns the class of each request from the call, never from its body,
and nothing is reported home.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray.llm._internal.common.callbacks.base import CallbackCtx
from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine
from ray.serve.llm import LLMConfig
from ray.serve.llm.deployment import LLMServer

from cotenant.engines.llm.asgi import RANK, App
from deployments.llm_worker import TIMED
from deployments.spare import Spare

WORKERS = {vllms: f"deployments.llm_worker.{ours}" for vllms, ours in TIMED.items()}


class Engine(VLLMEngine):  # type: ignore[misc]
    """Ray's vLLM engine, with this platform's choices made after vLLM has made its own."""

    names: Sequence[str] = ()
    spare: Spare

    def _prepare_engine_config(self, callback_ctx: CallbackCtx) -> tuple[Any, Any, Any]:
        engine_args, frontend_args, engine_config = super()._prepare_engine_config(callback_ctx)
        engine_args.served_model_name = list(self.names)
        parallel = engine_config.parallel_config
        if parallel.distributed_executor_backend == "mp" and parallel.world_size == 1:
            # vLLM asks for a worker process so that it can bind its OpenMP threads; ours are not bound. One
            # process fewer imports torch, and none spins on the shared memory between the two.
            parallel.distributed_executor_backend = "uni"
        parallel.worker_cls = WORKERS.get(parallel.worker_cls, parallel.worker_cls)
        parallel.worker_extension_cls = "deployments.llm_worker.WorkerExtension"
        scheduler = engine_config.scheduler_config
        name = "AsyncClassScheduler" if scheduler.async_scheduling else "ClassScheduler"
        scheduler.scheduler_cls = f"deployments.llm_scheduler.{name}"
        return engine_args, frontend_args, engine_config

    def _start_async_llm_engine(self, *args: Any) -> Any:
        with self.spare.standing_in_for("EngineCore"):
            client = super()._start_async_llm_engine(*args)
        generate = client.generate

        def generate_by_rank(*args: Any, **kwargs: Any) -> Any:
            # vLLM's own way, the field `priority` of the body, is the client's; and its beam search drops it.
            return generate(*args, **{**kwargs, "priority": RANK.get()})

        client.generate = generate_by_rank
        return client


class Server(LLMServer):  # type: ignore[misc]
    """Ray's LLM server without its usage telemetry, which is a further actor: 400 MB, and seconds of every start."""

    async def _start_engine(self) -> None:
        await self.engine.start()

    async def host_sleep(self) -> None:
        """Sleep where vLLM has no sleep of its own: nothing is scheduled any more, model and KV cache are let go."""
        client = self.engine._engine_client
        await client.sleep(level=0)
        if not await client.reset_prefix_cache():
            raise RuntimeError("vLLM still has requests in its KV cache, so it can't sleep")
        await self.collective_rpc("cotenant_host_sleep")

    async def host_wake(self) -> None:
        """Undo `host_sleep`."""
        await self.collective_rpc("cotenant_host_wake")
        await self.engine._engine_client.wake_up(["scheduling"])

    async def cuda_sleep(self, level: int) -> None:
        """vLLM's own sleep: level 1 keeps the weights in host memory, 2 drops them; the KV cache goes with both."""
        await self.sleep(level=level)

    async def cuda_wake(self, level: int) -> None:
        """Undo `cuda_sleep`; at level 2 the weights are read again before the KV cache comes back."""
        if level == 1:
            await self.wakeup()
            return
        await self.wakeup(tags=["weights"])
        await self.collective_rpc("reload_weights")
        await self.wakeup(tags=["kv_cache"])

    async def stop(self) -> None:
        """End the engine and its processes."""
        await self.engine.shutdown()
        self.engine._engine_client.shutdown()


async def start(config: dict[str, Any], names: Sequence[str], spare: Spare) -> tuple[Server, App]:
    """Start the engine, in `spare` if it still waits; returns Ray's server and vLLM's own HTTP application over it."""
    llm_config = LLMConfig(**config)
    if config["model_loading_config"]["model_source"].startswith("/"):
        llm_config.get_or_create_callback().ctx.run_init_node = False
    server = Server.sync_init(llm_config, engine_cls=type("Engine", (Engine,), {"names": tuple(names), "spare": spare}))
    await server.start()
    try:
        return server, await server.engine.build_asgi_app()
    except BaseException:
        await server.stop()
        raise
