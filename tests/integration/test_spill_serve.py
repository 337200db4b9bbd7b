"""The gateway as Serve runs it spills, and a changed URL reaches it without a restart of anything."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from cotenant.calls import Call, Directory, Reply, Served
from cotenant.config import Platform
from cotenant.gpu.plan import plan
from cotenant.manifests.serve import serve_config
from tests.contracts.upstream_house import upstream
from tests.integration.test_ingress_serve import apps, wait_for

pytestmark = pytest.mark.integration
#: `scripts/test` builds images beside it.
WAITS_FOR_RAY = True

DIRECTORY = Directory((Served("mockups", "mockup", templates=("mug",), deadline_s=30),))


@pytest.fixture
def elsewhere() -> Iterator[dict[str, str]]:
    """Two other platforms, by name; they live in a loop of their own."""
    urls: dict[str, str] = {}
    ready, over = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def live() -> None:
        def one(name: str) -> Any:
            def answer(call: Call) -> Reply:
                if call.method == "GET":
                    return Reply(200, b'{"object": "list", "data": [{"id": "mug"}]}')
                return Reply(200, name.encode(), "image/png")

            return upstream({"mockups": answer}, DIRECTORY, keys="x:sk-spill")

        async with one("first") as first, one("second") as second:
            urls.update(first=first.url, second=second.url)
            ready.set()
            await over.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(live(),), daemon=True)
    thread.start()
    assert ready.wait(10)
    yield urls
    loop.call_soon_threadsafe(over.set)
    thread.join(10)
    loop.close()


@pytest.fixture
def serve() -> Iterator[Any]:
    """A Ray of our own, where nothing serves the workload."""
    import ray
    from ray import serve

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COTENANT_SPILL_KEY", "sk-spill")
        patch.setenv("COTENANT_API_KEYS", "")
        patch.delenv("RAY_ADDRESS", raising=False)
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        serve.start(proxy_location="Disabled")
        yield serve
        serve.shutdown()
        ray.shutdown()


def a_platform(port: int, url: str) -> Platform:
    spill = {"url": url, "key_env": "COTENANT_SPILL_KEY", "after_wait_s": 1}
    return Platform.model_validate(
        {
            "environment": "test",
            "workloads": {
                "mockups": {"mockup": {"templates": ["mug", "poster"]}, "gpu": {"vram_gib": 1}, "spill": spill}
            },
            "pools": {"shared": {"accelerator": "cpu", "vram_gib": 12}},
            "gateway": {"port": port},
            "jobs": {"ingresses": 0},
        }
    )


def deploy(platform: Platform) -> None:
    from ray.serve._private.api import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    config = serve_config(platform, plan(platform))
    config["applications"] = [app for app in config["applications"] if app["name"] == "gateway"]
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate(config), _blocking=True)


def replica_of(serve: Any) -> list[str]:
    from ray.serve._private.api import _get_global_client

    details = _get_global_client().get_serve_details()["applications"]["gateway"]["deployments"]["Gateway"]
    return [replica["replica_id"] for replica in details["replicas"] if replica["state"] == "RUNNING"]


def test_a_gateway_without_replicas_behind_it_spills_and_hears_of_another_url_in_place(
    serve: Any, elsewhere: dict[str, str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    deploy(a_platform(port, elsewhere["first"]))
    wait_for(lambda: apps(serve).get("gateway") == "RUNNING")
    before = replica_of(serve)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        reply = client.post("/v1/mockups", json={"template": "mug"})
        assert (reply.status_code, reply.content) == (200, b"first"), reply.text
        assert reply.headers["x-cotenant-served-by"] == httpx.URL(elsewhere["first"]).netloc.decode()
        poster = client.post("/v1/mockups", json={"template": "poster"})
        assert poster.status_code in (404, 503)

        deploy(a_platform(port, elsewhere["second"]))
        wait_for(lambda: client.post("/v1/mockups", json={"template": "mug"}).content == b"second")
        assert replica_of(serve) == before
        metrics = client.get("/metrics").text
    assert 'cotenant_spilled_total{reason="no_replica",workload="mockups"}' in metrics
