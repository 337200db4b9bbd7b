"""Starts of a real renderer under Ray Serve: recorded stage by stage, told to the agent, shown and published."""

from __future__ import annotations

import base64
import io
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from cotenant.agent.look import snapshots
from cotenant.calls import Call
from cotenant.cli import main
from cotenant.config import load_platform
from cotenant.gpu.plan import plan
from cotenant.manifests.serve import serve_config
from cotenant.telemetry.starts import Start

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]
#: `scripts/test` builds images beside it.
WAITS_FOR_RAY = True

ROOT = Path(__file__).parents[2]
WORKLOAD = "mockups"
PATIENCE_S = 200


def mockup() -> Call:
    out = io.BytesIO()
    Image.linear_gradient("L").save(out, "PNG")
    body = {"template": "poster", "artwork": base64.b64encode(out.getvalue()).decode(), "size": 64, "samples": 4}
    return Call("/v1/mockups", json.dumps(body).encode(), accept="image/*")


@pytest.fixture(scope="module")
def handle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Of a renderer that sleeps when it was idle for a second."""
    import ray
    from ray import serve
    from ray.serve._private.api import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    file = tmp_path_factory.mktemp("platform") / "platform.yaml"
    mockups = {"mockup": {"templates": ["poster"]}, "gpu": {"vram_gib": 2}, "residency": "sleep", "idle_s": 1}
    content = {
        "workloads": {WORKLOAD: mockups},
        "jobs": {"ingresses": 0},
        "environments": {"local": {"pools": {"shared": {"accelerator": "cpu", "vram_gib": 8}}}},
    }
    file.write_text(yaml.safe_dump(content))
    platform = load_platform(file, "local")
    config = serve_config(platform, plan(platform))
    config["applications"] = [one for one in config["applications"] if one["name"] == WORKLOAD]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT / 'platform'}:{ROOT}")
        patch.setenv("COTENANT_AGENT_DIR", str(tmp_path_factory.mktemp("a")))
        patch.setenv("RAY_metrics_report_interval_ms", "1000")
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        patch.delenv("RAY_ADDRESS", raising=False)
        ray.init(
            address="local",
            num_cpus=2,
            num_gpus=1,
            resources={"cotenant-pool-shared": 1000},
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=200 << 20,
        )
        serve.start(proxy_location="Disabled")
        _get_global_client().deploy_apps(ServeDeploySchema.model_validate(config), _blocking=False)
        wait_for(lambda: serve.status().applications[WORKLOAD].status == "RUNNING")
        yield serve.get_app_handle(WORKLOAD)
        serve.shutdown()
        ray.shutdown()


def wait_for(what: Any) -> None:
    end = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < end
        time.sleep(0.2)


def starts() -> dict[str, Start]:
    """What the agent knows, the latest of each kind."""
    return {start.kind: start for snapshot in snapshots() for start in snapshot.starts}


def test_a_cold_start_and_a_wake_are_on_record_and_their_stages_add_up(handle: Any) -> None:
    wait_for(lambda: "cold" in starts())
    cold = starts()["cold"]
    assert {"process", "imports", "turn", "weights", "warm_up"} <= set(cold.seconds())
    assert math.isclose(sum(cold.seconds().values()), cold.ready_s, abs_tol=0.01)
    assert cold.first_result is None
    assert cold.ready_at <= time.time()

    def tier() -> str:
        return next(replica.tier.value for snapshot in snapshots() for gpu in snapshot.gpus for replica in gpu.replicas)

    wait_for(lambda: tier() == "asleep")
    called_at = time.time()
    assert handle.call.remote(mockup()).result().status == 200
    wait_for(lambda: "wake" in starts() and starts()["wake"].first_result is not None)
    woken = starts()["wake"]
    assert {"wake", "first_result"} <= set(woken.seconds()) <= {"turn", "wake", "first_result"}
    assert woken.first_result is not None
    assert woken.began_at >= called_at
    assert woken.ready_at <= woken.first_result.began_at <= woken.first_result.ended_at <= time.time()
    assert (woken.workload, woken.replica) == (WORKLOAD, cold.replica)


@pytest.mark.usefixtures("handle")
def test_they_are_shown_and_published() -> None:
    import ray

    shown = CliRunner().invoke(main, ["starts"])
    assert shown.exit_code == 0, shown.output
    assert "W weights" in shown.output
    (node,) = ray.nodes()
    url = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
    want = "ray_cotenant_start_seconds_count{"

    def published() -> list[str]:
        lines = httpx.get(url, trust_env=False).text.splitlines()
        return [line for line in lines if line.startswith(want) and f'workload="{WORKLOAD}"' in line]

    wait_for(lambda: any('kind="wake"' in line for line in published()))
    assert any('stage="weights"' in line and 'kind="cold"' in line for line in published())
