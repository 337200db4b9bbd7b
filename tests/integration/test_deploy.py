"""A Ray that somebody else started: plain `serve deploy` on it, and `cotenant up --address` joining it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from cotenant.cli.machine import ray_node
from cotenant.cli.machine.serve_api import ServeApi

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
#: `scripts/test` builds images beside it.
WAITS_FOR_RAY = True

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ray_node.RayNode]:
    """One Ray with a GPU and pool `shared`, and no pool `front`."""
    spec = ray_node.NodeSpec(num_cpus=3, num_gpus=1, resources={"cotenant-pool-shared": 1000.0})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COTENANT_HOME", str(tmp_path_factory.mktemp("home")))
        started = ray_node.start(spec, {"PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}, lambda waited_s: None)
        yield started
        ray_node.stop(started.process, started.directory)
        shutil.rmtree(started.directory, ignore_errors=True)


def run(node: ray_node.RayNode, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        **ray_node.ray_environment(node.token_file),
        "COTENANT_HOME": str(node.token_file.parent),
    }
    return subprocess.run(
        [str(BIN / command[0]), *command[1:]], env=environment, capture_output=True, text=True, timeout=200, check=False
    )


def platform_file(folder: Path, *, pools: str = "{shared: {accelerator: cpu, vram_gib: 12}}") -> tuple[Path, int]:
    """A platform of one renderer without jobs, and the port of its gateway."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    file = folder / "platform.yaml"
    file.write_text(
        "name: deploytest\n"
        "workloads: {mockups: {mockup: {templates: [poster]}, gpu: {vram_gib: 1.5}}}\n"
        "jobs: {ingresses: 0}\n"
        f"gateway: {{port: {port}}}\n"
        f"environments: {{local: {{pools: {pools}}}}}\n"
    )
    return file, port


def test_up_refuses_a_ray_that_lacks_resources_and_names_the_line_that_would_serve(
    node: ray_node.RayNode, tmp_path: Path
) -> None:
    file, _ = platform_file(
        tmp_path, pools="{shared: {accelerator: cpu, vram_gib: 4, nodes: {max: 2}}, front: {machine: e2-standard-4}}"
    )
    done = run(node, "cotenant", "up", "-f", str(file), "--address", node.dashboard)
    assert done.returncode == 1
    assert "GPU (need 2, have 1)" in done.stderr
    assert "cotenant-pool-front (need 1000, have 0)" in done.stderr
    assert "ray start --head --num-gpus 2" in done.stderr
    assert "Traceback" not in done.stderr
    with ServeApi(node.dashboard, node.token_file) as serve:
        assert not serve.applications()


def test_plain_serve_deploy_runs_what_compile_prints(node: ray_node.RayNode, tmp_path: Path) -> None:
    file, port = platform_file(tmp_path)
    compiled = run(node, "cotenant", "compile", "-f", str(file))
    assert compiled.returncode == 0, compiled.stderr
    config = tmp_path / "serve.yaml"
    config.write_text(compiled.stdout)
    wanted = {application["name"] for application in yaml.safe_load(compiled.stdout)["applications"]}
    deployed = run(node, "serve", "deploy", "-a", node.dashboard, str(config))
    assert deployed.returncode == 0, deployed.stderr
    with ServeApi(node.dashboard, node.token_file) as serve:
        end = time.monotonic() + 120
        while wanted - {name for name, application in serve.applications().items() if application.ready}:
            assert time.monotonic() < end, serve.applications()
            time.sleep(0.5)
    ready = httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False)
    assert ready.status_code == 200, ready.text
