"""`cotenant deploy`, `status` and `rollback` before a real kube-apiserver, with what is rendered; the test is KubeRay.

Of what is rendered, kinds that came to Kubernetes later, or that GKE brings, are left out here.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cotenant.cli import deploying, main
from cotenant.cluster.kube import connect
from cotenant.cluster.objects import RAY_CLUSTER, RAY_SERVICE, Kind, Object, kind_of
from cotenant.cluster.rayservice import serve_applications
from cotenant.cluster.verdict import Patience
from cotenant.errors import KindMissing
from cotenant.manifests import environment as rendering
from tests.contracts.api_server import ApiServer, require_api_server
from tests.contracts.ray_statuses import ACTIVE, applications, status

pytestmark = pytest.mark.integration
#: `scripts/test` runs it beside another.
WAITS_MORE_THAN_IT_COMPUTES = True

FILE = """
name: shop
workloads:
  writer: {llm: {model: smollm2-135m}, gpu: {vram_gib: VRAM}, replicas: {min: 1, max: 2}}
  mockups: {mockup: {templates: [mug]}, gpu: {vram_gib: 1.5}}
jobs: {store: "gs://bucket/results"}
gateway: {host: 0.0.0.0}
environments:
  ENV:
    pools:
      front: {machine: e2-standard-8, nodes: {min: 1, max: 2}}
      shared: {accelerator: nvidia-l4, machine: g2-standard-8, nodes: {min: 0, max: MOST}}
    gke: {project: acme-shop, region: us-central1}
"""


@pytest.fixture(scope="module")
def server() -> ApiServer:
    return require_api_server()


class Operator:
    """Plays KubeRay for one namespace: each generation comes up, or fails, by way of a pending Ray cluster.

    There is one RayCluster object, made of the first generation and never changed by it.
    """

    def __init__(self, server: ApiServer, namespace: str) -> None:
        self.fails = False
        self._server = server
        self._clusters = f"/apis/ray.io/v1/namespaces/{namespace}/rayclusters"
        self._path = f"/apis/ray.io/v1/namespaces/{namespace}/rayservices"
        self._done: dict[str, int] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(0.1):
            for service in self._server.call("GET", self._path)["items"]:
                name, generation = service["metadata"]["name"], service["metadata"]["generation"]
                if self._done.get(name) != generation:
                    self._bring_up(service, name, generation)
                    self._done[name] = generation

    def _bring_up(self, service: Object, name: str, generation: int) -> None:
        if not self._done:
            metadata = {"name": ACTIVE, "labels": service["metadata"]["labels"]}
            config = service["spec"]["rayClusterConfig"]
            made = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": metadata, "spec": config}
            self._server.call("POST", self._clusters, made)
        names = [each["name"] for each in serve_applications(service)]
        deploying_: dict[str, Any] = dict.fromkeys(names, "DEPLOYING")
        running: dict[str, Any] = dict.fromkeys(names, "RUNNING")
        failed = {**running, "writer": ("DEPLOY_FAILED", "Traceback\nRuntimeError: no such model")}
        ran = applications(**running) if self._done else None
        self._tell(name, status(generation, active=ran, pending=applications(**deploying_)))
        if self.fails:
            self._tell(name, status(generation, active=ran, pending=applications(**failed)))
        else:
            self._tell(name, status(generation, active=applications(**running)))

    def _tell(self, name: str, told: Mapping[str, Any]) -> None:
        live = self._server.call("GET", f"{self._path}/{name}")
        self._server.call("PUT", f"{self._path}/{name}/status?fieldManager=operator", {**live, "status": dict(told)})

    def stop(self) -> None:
        self._ended.set()
        self._thread.join(10)


@pytest.fixture
def environment() -> str:
    return f"e{uuid.uuid4().hex[:6]}"


@pytest.fixture
def file(tmp_path: Path, environment: str) -> Path:
    return write(tmp_path / "platform.yaml", environment)


def write(file: Path, environment: str, vram_gib: int = 5, most: int = 2) -> Path:
    text = FILE.replace("ENV", environment).replace("VRAM", str(vram_gib)).replace("MOST", str(most))
    file.write_text(text)
    return file


@pytest.fixture(autouse=True)
def _here(server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "kubeconfig")))
    monkeypatch.setattr(deploying, "PATIENCE", Patience(steady_s=1.0, failed_s=0.5))
    monkeypatch.setattr(deploying, "LOOK_S", 1.0)
    cluster, whole = connect(), rendering.cluster_objects
    lacking = set()

    def known(platform: Any, plan: Any) -> list[Object]:
        kept = []
        for thing in whole(platform, plan):
            kind = kind_of(thing)
            try:
                if kind not in lacking:
                    cluster.list(kind, "default")
                    kept.append(_for_1_20(thing))
            except KindMissing:
                lacking.add(kind)
        return kept

    monkeypatch.setattr(rendering, "cluster_objects", known)


def _for_1_20(thing: Object) -> Object:
    """This version's server-side apply wants the protocol of each port; later ones have a default for it."""
    for port in thing["spec"].get("ports", ()) if thing["kind"] == "Service" else ():
        port.setdefault("protocol", "TCP")
    return thing


@pytest.fixture
def operator(server: ApiServer, environment: str) -> Iterator[Operator]:
    operator = Operator(server, f"shop-{environment}")
    yield operator
    operator.stop()


def run(file: Path, environment: str, *words: str) -> Result:
    command, *rest = words
    return CliRunner().invoke(main, [command, "-f", str(file), "-e", environment, "--context", "test", *rest])


def test_what_is_rendered_is_deployed_failed_and_brought_back(
    server: ApiServer, file: Path, environment: str, operator: Operator
) -> None:
    tried = run(file, environment, "deploy", "--dry-run")
    assert tried.exit_code == 0, tried.output
    with pytest.raises(urllib.error.HTTPError):
        server.call("GET", f"/api/v1/namespaces/shop-{environment}")

    first = run(file, environment, "deploy", "--yes", "--timeout", "60")
    assert first.exit_code == 0, first.output
    assert "healthy after" in first.output
    service = _service(server, environment)

    again = run(file, environment, "deploy", "--dry-run")
    assert "nothing to change" in again.output, again.output

    operator.fails = True
    write(file, environment, vram_gib=6)
    second = run(file, environment, "deploy", "--yes", "--timeout", "60")
    assert second.exit_code == 1, second.output
    assert "writer: RuntimeError: no such model" in second.output
    assert any(line.startswith("-") and "num_gpus" in line for line in second.output.splitlines())
    told = json.loads(run(file, environment, "status", "--json").output)
    assert (told["standing"], told["revision"]["state"]) == ("failed", "failed")

    operator.fails = False
    back = run(file, environment, "rollback", "--yes", "--timeout", "60")
    assert back.exit_code == 0, back.output
    assert _service(server, environment)["spec"] == service["spec"]
    told = json.loads(run(file, environment, "status", "--json").output)
    assert (told["standing"], told["revision"]["number"], told["revision"]["rollback_of"]) == ("healthy", 3, 1)


@pytest.mark.parametrize("words", [("--timeout", "60"), ("--no-wait",)], ids=["waiting", "no wait"])
def test_a_pools_new_maximum_reaches_the_ray_cluster_that_runs(
    server: ApiServer, file: Path, environment: str, operator: Operator, words: tuple[str, ...]
) -> None:
    assert run(file, environment, "deploy", "--yes", "--timeout", "60").exit_code == 0
    before = _groups(server, environment)
    assert before["shared"]["maxReplicas"] == 2

    write(file, environment, most=5)
    shift = f"RayCluster {ACTIVE}: group shared max 2 -> 5"
    tried = run(file, environment, "deploy", "--dry-run")
    assert f"~ {shift}" in tried.output, tried.output
    assert "2 changes" in tried.output
    assert _groups(server, environment) == before

    done = run(file, environment, "deploy", "--yes", *words)
    assert done.exit_code == 0, done.output
    assert done.output.count(f"changed {shift}") == 1
    after = _groups(server, environment)
    assert after == {**before, "shared": {**before["shared"], "maxReplicas": 5}}
    _wait_until_healthy(file, environment)

    again = run(file, environment, "deploy", "--dry-run")
    assert "nothing to change" in again.output, again.output
    assert json.loads(run(file, environment, "status", "--json").output)["notes"] == []


def test_bounds_that_somebody_else_set_on_the_ray_cluster_are_told_and_put_right(
    server: ApiServer, file: Path, environment: str, operator: Operator
) -> None:
    assert run(file, environment, "deploy", "--yes", "--timeout", "60").exit_code == 0
    groups = list(_groups(server, environment).values())
    theirs = [{**each, "maxReplicas": 1, "replicas": 1} if each["groupName"] == "shared" else each for each in groups]
    server.patch(_path(RAY_CLUSTER, environment, ACTIVE), {"spec": {"workerGroupSpecs": theirs}}, "kubectl-edit")
    (note,) = json.loads(run(file, environment, "status", "--json").output)["notes"]
    assert "group shared has max 1, not 2" in note
    done = run(file, environment, "deploy", "--yes", "--timeout", "60")
    assert done.exit_code == 0, done.output
    assert "1 changes" in done.output
    shared = _groups(server, environment)["shared"]
    assert (shared["maxReplicas"], shared["replicas"]) == (2, 1)


def _wait_until_healthy(file: Path, environment: str) -> None:
    until = time.monotonic() + 60
    while json.loads(run(file, environment, "status", "--json").output)["standing"] != "healthy":
        assert time.monotonic() < until
        time.sleep(0.2)


def _groups(server: ApiServer, environment: str) -> dict[str, Any]:
    spec = server.call("GET", _path(RAY_CLUSTER, environment, ACTIVE))["spec"]
    return {each["groupName"]: each for each in spec["workerGroupSpecs"]}


def _path(kind: Kind, environment: str, name: str) -> str:
    return f"/apis/{kind.api_version}/namespaces/shop-{environment}/{kind.name.lower()}s/{name}"


def _service(server: ApiServer, environment: str) -> Any:
    return server.call("GET", _path(RAY_SERVICE, environment, "shop"))


def test_a_context_that_is_not_there_names_those_that_are(file: Path, environment: str) -> None:
    done = CliRunner().invoke(main, ["status", "-f", str(file), "-e", environment, "--context", "other"])
    assert done.exit_code == 1
    assert "there are: test; name one with --context" in done.output


def test_whoever_may_not_deploy_is_told_what_is_missing(
    server: ApiServer, file: Path, environment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = server.kubeconfig(tmp_path / "nobody", token="nobody-token")
    monkeypatch.setenv("KUBECONFIG", str(nobody))
    done = run(file, environment, "deploy", "--yes")
    assert done.exit_code == 1
    assert f"kubectl auth can-i get namespaces -n shop-{environment}" in done.output or (
        "kubectl auth can-i" in done.output
    )
