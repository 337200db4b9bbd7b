"""What an image must be able to do, done inside it: python - IMAGE [FOLDER] < images/check.py. Standard library first.

Nothing here is a stand-in: Ray's head starts and answers, the gateway listens, the mockup engine renders a mug into
FOLDER. Prints one line a check and exits with the first that fails.
"""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

ENGINES = ("torch", "vllm", "mitsuba", "diffusers", "trimesh")


def everywhere() -> Iterator[str]:
    """What KubeRay and the manifests take for granted."""
    assert (os.getuid(), os.getgid()) == (1000, 1000), "it runs as another user"
    yield "runs as user 1000, group 1000"
    for program in ("bash", "wget", "ray", "cotenant"):
        assert shutil.which(program), f"{program} is not on PATH"
        assert (
            subprocess.run(["bash", "-lc", f"command -v {program}"], check=False, capture_output=True).returncode == 0
        )
    yield "bash, wget, ray and cotenant are on PATH, in a login shell too"
    home = Path(os.environ["COTENANT_HOME"])
    with tempfile.NamedTemporaryFile(dir=home):
        pass
    assert not os.access("/app", os.W_OK) and not os.access("/opt/venv", os.W_OK)
    yield f"{home} is writable, the program is not"
    yield subprocess.run(["cotenant", "--version"], check=True, capture_output=True, text=True).stdout.strip()
    bill = json.loads(Path("/usr/share/cotenant/sbom.cdx.json").read_text())
    names = {component["name"] for component in bill["components"]}
    assert {"ray", "pydantic", "libc6"} <= names, "the bill of materials lacks packages"
    yield f"bill of materials: {bill['bomFormat']} {bill['specVersion']}, {len(names)} packages"


def doors() -> Iterator[str]:
    """Head, gateway, and no engine."""
    assert not [name for name in ENGINES if importlib.util.find_spec(name)], "an engine got in"
    yield "no engine"
    yield asyncio.run(_gateway())
    yield _head()


async def _gateway() -> str:
    import httpx  # noqa: PLC0415

    import deployments.gateway  # noqa: PLC0415
    import deployments.ingress  # noqa: PLC0415
    from cotenant.calls import Directory  # noqa: PLC0415
    from cotenant.config import Gateway  # noqa: PLC0415
    from cotenant.gateway.app import create_app  # noqa: PLC0415
    from cotenant.gateway.keys import load_keys  # noqa: PLC0415
    from cotenant.gateway.server import HttpServer  # noqa: PLC0415
    from cotenant.telemetry.metrics import GatewayMetrics  # noqa: PLC0415

    backend = deployments.gateway.ServeBackend(gate=None)  # type: ignore[arg-type]
    config = Gateway(host="127.0.0.1")
    app = create_app(lambda: Directory(()), backend, config, load_keys(config, {}), GatewayMetrics())
    server = HttpServer(app, host="127.0.0.1", port=0)
    await server.start()
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"{server.url}/healthz")
    await server.stop()
    assert answer.status_code == 200, answer.text
    return "the gateway listens and is healthy"


def _head() -> str:
    """Ray's head as KubeRay starts it: bash -c 'ray start --head --block …', probed with wget."""
    began = time.monotonic()
    gcs, dashboard, agent, client = _free_ports(4)
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        start = (
            f"exec ray start --head --block --num-cpus=0 --port={gcs} --ray-client-server-port={client} "
            f"--dashboard-host=127.0.0.1 --dashboard-port={dashboard} --dashboard-agent-listen-port={agent} "
            "--min-worker-port=0 --max-worker-port=0 --node-ip-address=127.0.0.1 --object-store-memory=100000000 "
            f"--temp-dir={folder}/ray"
        )
        log = Path(folder) / "log"
        with log.open("wb") as output:
            head = subprocess.Popen(["bash", "-c", start], stdout=output, stderr=output)
        try:
            while time.monotonic() - began < 90:
                assert head.poll() is None, f"ray ended: {log.read_text()[-2000:]}"
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{dashboard}/api/version", timeout=2) as answer:
                        version = json.load(answer)["ray_version"]
                    break
                except OSError:
                    time.sleep(0.5)
            else:
                raise AssertionError(f"no dashboard: {log.read_text()[-2000:]}")
            probe = f"wget --tries 1 -T 5 -q -O- http://127.0.0.1:{agent}/api/local_raylet_healthz | grep success"
            healthy = False
            while not healthy and time.monotonic() - began < 120:
                healthy = subprocess.run(["bash", "-c", probe], capture_output=True, check=False).returncode == 0
                time.sleep(0.5)
            assert healthy, "the raylet's health is not told"
        finally:
            head.terminate()
            head.wait(30)
    return f"Ray {version}: the head came up and its probe by wget answered, {time.monotonic() - began:.0f} s"


def _free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports


def engines(folder: Path | None) -> Iterator[str]:
    """Every engine can be imported, and the renderer renders where it needs no GPU."""
    assert not [name for name in ENGINES if not importlib.util.find_spec(name)], "an engine is missing"
    yield "every engine is there"
    import torch  # noqa: PLC0415
    import vllm  # noqa: PLC0415

    yield f"torch {torch.__version__}, vllm {vllm.__version__}"
    if folder is not None:
        yield _mug(folder)


def _mug(folder: Path) -> str:
    from cotenant.calls import Call  # noqa: PLC0415
    from cotenant.config import MockupSpec  # noqa: PLC0415
    from cotenant.engines.mockup.engine import URL, MockupEngine  # noqa: PLC0415

    began = time.monotonic()
    artwork = base64.b64encode((folder / "artwork.png").read_bytes()).decode()
    engine = MockupEngine(MockupSpec(templates=("mug",)))
    loaded = time.monotonic()
    body = {"template": "mug", "artwork": artwork, "size": 512, "samples": 32}
    reply = asyncio.run(engine.call(Call(URL, json.dumps(body).encode(), accept="image/png")))
    engine.close()
    assert reply.status == 200, reply.body[:500]
    (folder / "mug.png").write_bytes(reply.body)
    return (
        f"a mug of 512 pixels, {len(reply.body)} bytes: engine {loaded - began:.1f} s, "
        f"render {time.monotonic() - loaded:.1f} s"
    )


def main() -> None:
    image, folder = sys.argv[1], Path(sys.argv[2]) if len(sys.argv) > 2 else None
    for check in (everywhere(), doors() if image == "doors" else engines(folder)):
        for told in check:
            print(f"ok: {told}", flush=True)


if __name__ == "__main__":
    main()
