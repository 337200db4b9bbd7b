"""The gateway and the ingress as Serve runs them: a job goes in by HTTP and its picture comes out again.

The workload behind them is a small deployment that only answers; the engines have tests of their own.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from cotenant.calls import Reply, error_reply
from cotenant.config import Jobs, Platform
from cotenant.gpu.plan import plan
from cotenant.manifests.serve import serve_config
from tests.integration.test_ingress_serve import apps, wait_for

pytestmark = pytest.mark.integration


@pytest.fixture
def serve() -> Iterator[Any]:
    """A Ray of our own with the workload `mockups`."""
    import ray
    from ray import serve

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COTENANT_JOBS_SOURCE", "memory")
        patch.setenv("COTENANT_API_KEYS", "acme:sk-acme")
        patch.delenv("RAY_ADDRESS", raising=False)
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
        serve.start(proxy_location="Disabled")
        serve.run(_workload(serve), name="mockups", route_prefix=None)
        yield serve
        serve.shutdown()
        ray.shutdown()


def _workload(serve: Any) -> Any:
    class Replica:
        """Answers with the template's name; a body with `sleep_s` takes that long, one with `refuse` is refused."""

        async def call(self, call: Any) -> Any:
            body = json.loads(call.body)
            if body.get("refuse"):
                return error_reply(400, "no such size")
            await asyncio.sleep(body.get("sleep_s", 0))
            return Reply(200, b"\x89PNG" + body["template"].encode(), "image/png")

    return serve.deployment(Replica, name="Replica", max_ongoing_requests=2, ray_actor_options={"num_cpus": 0.1}).bind()


def deploy(platform: Platform) -> None:
    """Deploy the doors as `serve deploy` does; the workload is there already."""
    from ray.serve._private.api import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    config = serve_config(platform, plan(platform))
    config["applications"] = [app for app in config["applications"] if app["name"] in ("gateway", "ingress")]
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate(config), _blocking=True)


def a_platform(store: str, **jobs: Any) -> Platform:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    return Platform.model_validate(
        {
            "environment": "test",
            "workloads": {"mockups": {"mockup": {"templates": ["mug"]}, "gpu": {"vram_gib": 1}}},
            "pools": {"shared": {"accelerator": "cpu", "vram_gib": 12}},
            "gateway": {"port": port},
            "jobs": Jobs(store=store, lease_s=10, **jobs).model_dump(),
        }
    )


def made_by_batch(url: str) -> None:
    """A batch of pictures by the OpenAI client; its endpoint is ours."""
    lines = [
        {"custom_id": f"c-{n}", "method": "POST", "url": "/v1/mockups", "body": {"template": "mug", "refuse": n == 20}}
        for n in range(21)
    ]
    data = "\n".join(json.dumps(line) for line in lines).encode()
    with openai.OpenAI(base_url=url, api_key="sk-acme", max_retries=0, timeout=60) as client:
        file = client.files.create(file=("mugs.jsonl", data), purpose="batch")
        endpoint: Any = "/v1/mockups"
        made = client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")
        ended = wait_for(
            lambda: (seen := client.batches.retrieve(made.id)).status in ("completed", "failed", "expired") and seen
        )
        assert (ended.status, ended.errors) == ("completed", None)
        counts = ended.request_counts
        assert (counts.total, counts.completed, counts.failed) == (21, 20, 1)
        output = [json.loads(line) for line in client.files.content(ended.output_file_id).text.splitlines()]
        assert {line["custom_id"] for line in output} == {f"c-{n}" for n in range(20)}
        assert output[0]["response"]["body"]["content_type"] == "image/png"
        [failed] = client.files.content(ended.error_file_id).text.splitlines()
        assert json.loads(failed)["custom_id"] == "c-20"


def test_jobs_and_a_batch_go_in_by_http_and_their_pictures_come_out(serve: Any, tmp_path: Path) -> None:
    platform = a_platform(str(tmp_path / "results"))
    deploy(platform)
    wait_for(lambda: {apps(serve).get(name) for name in ("gateway", "ingress")} == {"RUNNING"})
    headers = {"authorization": "Bearer sk-acme"}
    job = {"url": "/v1/mockups", "body": {"template": "mug"}}
    with httpx.Client(base_url=f"http://127.0.0.1:{platform.gateway.port}", headers=headers, timeout=60) as client:
        made = client.post("/v1/jobs", json=job)
        assert made.status_code == 202, made.text
        ended = client.get(made.headers["location"], params={"wait_s": 40}).json()
        assert ended["status"] == "succeeded", ended
        picture = client.get(f"{made.headers['location']}/content")
        assert (picture.content, picture.headers["content-type"]) == (b"\x89PNGmug", "image/png")

        slow = client.post("/v1/jobs", json={**job, "body": {"template": "mug", "sleep_s": 60}}).headers["location"]
        wait_for(lambda: client.get(slow).json()["status"] == "running")
        assert client.delete(slow).json()["status"] == "cancelled"
        waiting = client.post("/v1/jobs", json=job, headers={"prefer": "wait=40"})
        assert waiting.json()["status"] == "succeeded"

        made_by_batch(f"http://127.0.0.1:{platform.gateway.port}/v1")

        deploy(a_platform(str(tmp_path / "results"), ingresses=0).model_copy(update={"gateway": platform.gateway}))
        wait_for(lambda: client.get("/v1/jobs").status_code == 404)
        assert client.get("/v1/models").status_code == 200
