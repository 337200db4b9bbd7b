"""`cotenant deploy`, `status` and `rollback`, with the in-memory cluster in the place of one."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cotenant.cli import deploying, main
from cotenant.cluster.memory import InMemoryCluster
from cotenant.cluster.objects import CONFIG_MAP, RAY_CLUSTER, RAY_SERVICE, Kind, Object, Ref
from cotenant.cluster.rayservice import serve_applications
from cotenant.cluster.refusals import may_not
from cotenant.cluster.verdict import Patience
from tests.contracts.ray_statuses import ACTIVE, PENDING, applications, pod, status

pytestmark = pytest.mark.unit

FILE = """
name: shop
workloads:
  writer: {llm: {model: smollm2-135m}, gpu: {vram_gib: 5}, replicas: {min: 1, max: 2}}
jobs: {store: "gs://bucket/results"}
gateway: {host: 0.0.0.0}
environments:
  local: {pools: {shared: {accelerator: cpu, vram_gib: 12}}}
  prod:
    pools:
      front: {machine: e2-standard-8, nodes: {min: 1, max: 2}}
      shared: {accelerator: nvidia-l4, machine: g2-standard-8, nodes: {min: 0, max: 2}}
    gke: {project: acme-shop, region: us-central1}
"""

Statuses = Callable[[Object], dict[str, Any] | None]


def running(service: Object) -> dict[str, Any]:
    names = [each["name"] for each in serve_applications(service)]
    told: dict[str, Any] = dict.fromkeys(names, "RUNNING")
    return status(service["metadata"]["generation"], active=applications(**told))


def failing(service: Object) -> dict[str, Any]:
    names = [each["name"] for each in serve_applications(service)]
    told: dict[str, Any] = {**dict.fromkeys(names, "RUNNING"), "writer": ("DEPLOY_FAILED", "Traceback\nValueError: no")}
    return status(service["metadata"]["generation"], active=applications(**told), pending=applications(**told))


class Operator:
    """Answers each new generation of the RayService with a status."""

    def __init__(self, cluster: InMemoryCluster) -> None:
        self.statuses: Statuses = running
        self._cluster = cluster
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(0.02):
            for service in self._cluster.list(RAY_SERVICE, "shop-prod").items:
                seen = (service.get("status") or {}).get("observedGeneration", 0)
                told = self.statuses(service)
                if told is not None and (seen != service["metadata"]["generation"] or told != service["status"]):
                    self._cluster.set_status(Ref(RAY_SERVICE, service["metadata"]["name"], "shop-prod"), told)

    def stop(self) -> None:
        self._ended.set()
        self._thread.join(5)


@pytest.fixture(autouse=True)
def _a_wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the tests run, so that no line is folded."""
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture
def cluster() -> InMemoryCluster:
    return InMemoryCluster()


@pytest.fixture
def operator(cluster: InMemoryCluster) -> Iterator[Operator]:
    operator = Operator(cluster)
    yield operator
    operator.stop()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "platform.yaml"
    file.write_text(FILE)
    return file


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, cluster: InMemoryCluster) -> None:
    monkeypatch.setattr(deploying, "open_cluster", lambda _context: cluster)
    monkeypatch.setattr(deploying, "PATIENCE", Patience(steady_s=0.2, failed_s=0.2, hopeless=0.01))
    monkeypatch.setattr(deploying, "LOOK_S", 0.1)


def run(file: Path, *words: str, **how: Any) -> Result:
    command, *rest = words
    return CliRunner().invoke(main, [command, "-f", str(file), "-e", "prod", *rest], **how)


def change(file: Path, vram_gib: int) -> None:
    file.write_text(FILE.replace("vram_gib: 5", f"vram_gib: {vram_gib}"))


def revisions(cluster: InMemoryCluster) -> list[tuple[str, str]]:
    told = [each for each in cluster.list(CONFIG_MAP, "shop-prod").items if "state" in each["data"]]
    told.sort(key=lambda each: int(each["metadata"]["labels"]["cotenant-revision"]))
    return [(each["metadata"]["name"].rpartition("-")[2], each["data"]["state"]) for each in told]


def test_a_deploy_shows_applies_waits_and_remembers(file: Path, cluster: InMemoryCluster, operator: Operator) -> None:
    done = run(file, "deploy", "--yes")
    assert done.exit_code == 0, done.output
    assert "+ RayService shop in shop-prod" in done.output
    assert "created RayService shop" in done.output
    assert "healthy after" in done.output
    assert revisions(cluster) == [("1", "healthy")]


def test_a_deploy_again_changes_nothing(file: Path, cluster: InMemoryCluster, operator: Operator) -> None:
    run(file, "deploy", "--yes")
    version = cluster.list(CONFIG_MAP).version
    done = run(file, "deploy")
    assert done.exit_code == 0, done.output
    assert "nothing to change" in done.output
    assert cluster.list(CONFIG_MAP).version == version


def test_a_dry_run_changes_nothing(file: Path, cluster: InMemoryCluster) -> None:
    version = cluster.list(CONFIG_MAP).version
    done = run(file, "deploy", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "+ RayService shop" in done.output
    assert cluster.list(CONFIG_MAP).version == version


def test_where_nobody_can_be_asked_yes_is_needed(file: Path, cluster: InMemoryCluster) -> None:
    done = run(file, "deploy")
    assert done.exit_code == 1
    assert "say --yes" in done.output
    assert cluster.list(RAY_SERVICE).items == ()


def test_a_failed_rollout_says_why_and_how_to_go_back(file: Path, cluster: InMemoryCluster, operator: Operator) -> None:
    run(file, "deploy", "--yes")
    operator.statuses = failing
    change(file, 6)
    done = run(file, "deploy", "--yes")
    assert done.exit_code == 1
    assert "writer: ValueError: no" in done.output
    assert "cotenant rollback -e prod" in done.output
    assert revisions(cluster) == [("1", "healthy"), ("2", "failed")]


def test_a_rollback_brings_the_last_healthy_one_back(file: Path, cluster: InMemoryCluster, operator: Operator) -> None:
    run(file, "deploy", "--yes")
    before = cluster.list(RAY_SERVICE).items[0]["spec"]
    operator.statuses = failing
    change(file, 6)
    run(file, "deploy", "--yes")
    assert cluster.list(RAY_SERVICE).items[0]["spec"] != before
    operator.statuses = running
    done = run(file, "rollback", "--yes")
    assert done.exit_code == 0, done.output
    assert "back to revision 1" in done.output
    assert cluster.list(RAY_SERVICE).items[0]["spec"] == before
    assert revisions(cluster) == [("1", "healthy"), ("2", "failed"), ("3", "healthy")]
    listed = run(file, "rollback", "--list")
    assert "back to 1" in listed.output
    assert "ValueError: no" in listed.output


def test_without_a_healthy_revision_there_is_no_way_back(file: Path, operator: Operator) -> None:
    done = run(file, "rollback", "--yes")
    assert done.exit_code == 1
    assert "never deployed by cotenant deploy" in done.output


def test_no_wait_ends_at_once_and_the_next_one_learns_how_it_went(
    file: Path, cluster: InMemoryCluster, operator: Operator
) -> None:
    done = run(file, "deploy", "--yes", "--no-wait")
    assert done.exit_code == 0
    assert "cotenant status -e prod" in done.output
    assert revisions(cluster) == [("1", "applied")]
    time.sleep(0.2)
    change(file, 6)
    assert run(file, "deploy", "--yes", "--no-wait").exit_code == 0
    assert revisions(cluster) == [("1", "healthy"), ("2", "applied")]


def test_a_timeout_says_what_was_waited_for(file: Path, cluster: InMemoryCluster) -> None:
    done = run(file, "deploy", "--yes", "--timeout", "1")
    assert done.exit_code == 1
    assert "not healthy after 1 s; it stays applied and may come up yet" in done.output
    assert "KubeRay has not taken up the change yet" in done.output
    assert revisions(cluster) == [("1", "applied")]


def test_ctrl_c_while_it_waits_leaves_everything_applied(
    file: Path, cluster: InMemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(deploying.view, "follow", pressed)
    done = run(file, "deploy", "--yes")
    assert done.exit_code == 130
    assert "everything is applied" in done.output
    assert len(cluster.list(RAY_SERVICE).items) == 1


def test_an_apply_that_is_cut_short_says_how_far_it_came(
    file: Path, cluster: InMemoryCluster, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply = cluster.apply

    def guarded(thing: Any, *, dry_run: bool = False, force: bool = False) -> Object:
        if thing["kind"] == "RayService" and not dry_run:
            raise KeyboardInterrupt
        return apply(thing, dry_run=dry_run, force=force)

    monkeypatch.setattr(cluster, "apply", guarded)
    done = run(file, "deploy", "--yes")
    assert done.exit_code != 0
    assert "objects were done and stay; the same command goes on from there" in done.output
    monkeypatch.setattr(cluster, "apply", apply)
    assert run(file, "deploy", "--yes").exit_code == 0


def test_fields_of_others_are_not_taken_unless_asked(file: Path, cluster: InMemoryCluster, operator: Operator) -> None:
    run(file, "deploy", "--yes")
    ref = Ref(RAY_SERVICE, "shop", "shop-prod")
    cluster.patch(ref, {"spec": {"serveConfigV2": "applications: []"}}, manager="kubectl-edit")
    done = run(file, "deploy", "--yes")
    assert done.exit_code == 1
    assert "kubectl-edit owns .spec.serveConfigV2" in done.output
    assert run(file, "deploy", "--yes", "--force-conflicts").exit_code == 0


def test_what_is_not_rendered_any_more_goes(file: Path, cluster: InMemoryCluster, operator: Operator) -> None:
    run(file, "deploy", "--yes")
    labels = cluster.list(RAY_SERVICE).items[0]["metadata"]["labels"]
    old = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "old", "namespace": "shop-prod", "labels": labels},
    }
    cluster.apply(old)
    assert "- Service old" in run(file, "deploy", "--dry-run").output
    assert run(file, "deploy", "--yes", "--no-prune").exit_code == 0
    assert cluster.get(Ref(Kind("v1", "Service"), "old", "shop-prod")) is not None
    assert "deleted Service old" in run(file, "deploy", "--yes").output
    assert cluster.get(Ref(Kind("v1", "Service"), "old", "shop-prod")) is None


def test_another_namespace_moves_everything(file: Path, cluster: InMemoryCluster) -> None:
    done = run(file, "deploy", "--yes", "--no-wait", "--namespace", "elsewhere")
    assert done.exit_code == 0, done.output
    assert [each["metadata"]["namespace"] for each in cluster.list(RAY_SERVICE).items] == ["elsewhere"]
    assert run(file, "deploy", "--namespace", "No Name").exit_code == 2


def test_an_environment_without_a_cluster_is_refused(file: Path) -> None:
    done = CliRunner().invoke(main, ["deploy", "-f", str(file), "-e", "local"])
    assert done.exit_code == 2
    assert "no gke section" in done.output


def test_status_tells_workloads_pods_and_the_last_revision(
    file: Path, cluster: InMemoryCluster, operator: Operator
) -> None:
    run(file, "deploy", "--yes")
    operator.statuses = failing
    cluster.put(
        pod(cluster=PENDING, namespace="shop-prod", unschedulable="0/2 nodes are available: 2 Insufficient cpu.")
    )
    time.sleep(0.2)
    shown = run(file, "status")
    assert shown.exit_code == 0, shown.output
    for words in ("deploy_failed", "ValueError: no", "0/1", "2 without enough cpu free", "healthy", "1 to 2"):
        assert words in shown.output
    told = json.loads(run(file, "status", "--json").output)
    assert told["standing"] == "failed"
    writer = next(each for each in told["workloads"] if each["name"] == "writer")
    assert (writer["status"], writer["message"]) == ("DEPLOY_FAILED", "ValueError: no")
    assert (writer["replicas"], writer["pools"]) == ({"min": 1, "max": 2}, ["shared"])
    assert told["pools"][0]["troubles"][0]["what"] == "unschedulable"
    assert (told["revision"]["number"], told["revision"]["state"]) == (1, "healthy")


def most(cluster: InMemoryCluster) -> int:
    live = cluster.get(Ref(RAY_CLUSTER, ACTIVE, "shop-prod"))
    assert live is not None
    return next(int(each["maxReplicas"]) for each in live["spec"]["workerGroupSpecs"] if each["groupName"] == "shared")


def deployed_with_a_ray_cluster(file: Path, cluster: InMemoryCluster) -> None:
    run(file, "deploy", "--yes")
    config = cluster.list(RAY_SERVICE).items[0]["spec"]["rayClusterConfig"]
    metadata = {"name": ACTIVE, "namespace": "shop-prod"}
    cluster.create({"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": metadata, "spec": config})


def test_a_rollback_brings_a_pools_maximum_back_too(file: Path, cluster: InMemoryCluster, operator: Operator) -> None:
    deployed_with_a_ray_cluster(file, cluster)
    file.write_text(FILE.replace("min: 0, max: 2", "min: 0, max: 5"))
    assert run(file, "deploy", "--yes").exit_code == 0
    assert most(cluster) == 5
    back = run(file, "rollback", "--yes")
    assert back.exit_code == 0, back.output
    assert f"changed RayCluster {ACTIVE}: group shared max 5 -> 2" in back.output
    assert most(cluster) == 2


def test_without_the_right_to_change_ray_clusters_a_deploy_goes_on_and_says_so_once(
    file: Path, cluster: InMemoryCluster, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def guarded(ref: Ref, *_: Any, **__: Any) -> Any:
        raise may_not(f"edit {ref}", "ci", "patch", "rayclusters", group="ray.io", namespace=ref.namespace)

    deployed_with_a_ray_cluster(file, cluster)
    monkeypatch.setattr(cluster, "edit", guarded)
    file.write_text(FILE.replace("min: 0, max: 2", "min: 0, max: 5"))
    done = run(file, "deploy", "--yes")
    assert done.exit_code == 0, done.output
    assert "1 changes" in done.output
    assert done.output.count("group shared has max 2, not 5") == 1
    assert "kubectl auth can-i patch rayclusters.ray.io -n shop-prod" in done.output
    assert "healthy after" in done.output
    assert "cotenant deploy passes it on" in json.loads(run(file, "status", "--json").output)["notes"][0]


def test_status_of_what_was_never_deployed_says_so(file: Path) -> None:
    done = run(file, "status")
    assert done.exit_code == 1
    assert "make it with cotenant deploy -e prod" in done.output
