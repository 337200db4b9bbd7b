"""The client before a real kube-apiserver: the same promises and faults, its rights, and kinds that it lacks."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.config import incluster_config

from cotenant.cluster.kube import connect
from cotenant.cluster.objects import CONFIG_MAP, NAMESPACE, POD, RAY_CLUSTER, RAY_SERVICE, Kind, Ref, Target
from cotenant.cluster.rest import RestCluster
from cotenant.cluster.revisions import Revisions
from cotenant.cluster.rollout import carry_out, propose
from cotenant.errors import KindMissing, ManifestRefused, NotConnected, NotPermitted
from tests.contracts.api_server import ApiServer, require_api_server, write_kubeconfig
from tests.contracts.cluster import ClusterContract, config, most_of, ray_cluster, ray_service, worker_group
from tests.contracts.cluster_faults import ClusterFaultsContract
from tests.contracts.fault_proxy import Proxy, proxying

pytestmark = pytest.mark.integration
#: `scripts/test` runs it beside another.
WAITS_MORE_THAN_IT_COMPUTES = True

PLURALS = {"ConfigMap": "configmaps", "RayCluster": "rayclusters", "RayService": "rayservices"}
DOCS = Path(__file__).parents[2] / "docs" / "deploy.md"


@pytest.fixture(scope="module")
def server() -> ApiServer:
    return require_api_server()


class _World:
    def __init__(self, server: ApiServer) -> None:
        self._server = server

    def patch(self, ref: Ref, changes: Mapping[str, Any], manager: str) -> None:
        self._server.patch(_path(ref), changes, manager)

    def set_status(self, ref: Ref, status: Mapping[str, Any]) -> None:
        live = self._server.call("GET", _path(ref))
        self._server.call("PUT", f"{_path(ref)}/status?fieldManager=operator", {**live, "status": dict(status)})

    def too_old(self) -> str:
        return "1"


def _path(ref: Ref) -> str:
    root = "/api/v1" if ref.kind.api_version == "v1" else f"/apis/{ref.kind.api_version}"
    return f"{root}/namespaces/{ref.namespace}/{PLURALS[ref.kind.name]}/{ref.name}"


@pytest.fixture
def world(server: ApiServer) -> _World:
    return _World(server)


@pytest.fixture
def admin(server: ApiServer, tmp_path: Path) -> RestCluster:
    return connect(kubeconfig=str(server.kubeconfig(tmp_path / "admin")))


@pytest.fixture
def place(admin: RestCluster) -> str:
    name = f"t-{uuid.uuid4().hex[:8]}"
    admin.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    return name


class TestPromises(ClusterContract):
    @pytest.fixture
    def cluster(self, admin: RestCluster) -> RestCluster:
        return admin


class TestFaults(ClusterFaultsContract):
    @pytest.fixture
    def proxy(self, server: ApiServer) -> Iterator[Proxy]:
        with proxying(server.url, trust=server.certificate) as proxy:
            yield proxy


def test_whoever_may_not_is_told_what_and_how_to_check(server: ApiServer, place: str, tmp_path: Path) -> None:
    nobody = connect(kubeconfig=str(server.kubeconfig(tmp_path / "nobody", token="nobody-token")))
    with pytest.raises(NotPermitted) as refused:
        nobody.apply(ray_service(place))
    assert str(refused.value).splitlines() == [
        f"can't apply RayService shop in {place}: nobody may not patch rayservices.ray.io in namespace {place}; "
        "ask for a role that allows it (docs/deploy.md has one), and check with",
        f"  kubectl auth can-i patch rayservices.ray.io -n {place}",
    ]
    with pytest.raises(NotPermitted, match=r"can-i patch rayclusters.ray.io -n "):
        nobody.edit(Ref(RAY_CLUSTER, "shop-raycluster-a", place), most_of(0, "shared", 8))
    with pytest.raises(NotPermitted, match=r"may not get namespaces in namespace|may not get namespaces"):
        nobody.get(Ref(NAMESPACE, place))


def test_a_wrong_token_is_told_to_log_in_again(server: ApiServer, tmp_path: Path) -> None:
    stranger = connect(kubeconfig=str(server.kubeconfig(tmp_path / "stranger", token="made-up")))
    with pytest.raises(NotConnected, match="log in again"):
        stranger.list(POD, "default")


def test_a_certificate_of_another_cluster_is_not_trusted(server: ApiServer, tmp_path: Path) -> None:
    file = tmp_path / "config"
    write_kubeconfig(file, {"test": {"server": server.url}}, {"tester": {"token": "admin-token"}})
    with pytest.raises(NotConnected, match="is not trusted"):
        connect(kubeconfig=str(file)).list(POD, "default")


def test_a_manifest_that_breaks_the_schema_is_refused_with_its_field(admin: RestCluster, place: str) -> None:
    thing = ray_service(place)
    thing["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]["image"] = 7
    with pytest.raises(ManifestRefused, match=r"containers.*image"):
        admin.apply(thing, dry_run=True)


def test_an_edit_that_breaks_the_schema_is_refused_with_its_field(admin: RestCluster, place: str) -> None:
    admin.create(ray_cluster(place, worker_group("shared", 2)))
    ref = Ref(RAY_CLUSTER, "shop-raycluster-a", place)
    with pytest.raises(ManifestRefused, match=r"maxReplicas.*integer"):
        admin.edit(ref, most_of(0, "shared", "many"))


def test_without_the_operators_kinds_it_is_said_how_to_install_it(admin: RestCluster, place: str) -> None:
    with pytest.raises(KindMissing, match=r"helm install kuberay-operator .*--version 1.7.0"):
        admin.get(Ref(Kind("ray.io/v2", "RayService"), "shop", place))


def test_the_docs_role_is_enough_to_deploy(server: ApiServer, admin: RestCluster, place: str, tmp_path: Path) -> None:
    text = DOCS.read_text(encoding="utf-8")
    role = next(block for block in text.split("```") if block.startswith("yaml\n") and "kind: ClusterRole\n" in block)
    for thing in yaml.safe_load_all(role.removeprefix("yaml\n").replace("shop-prod", place)):
        admin.apply(thing)
    admin.apply(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "tester", "namespace": place},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "cotenant-deployer"},
            "subjects": [{"kind": "User", "name": "deployer", "apiGroup": "rbac.authorization.k8s.io"}],
        }
    )
    admin.apply(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": f"tester-{place}"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cotenant-deployer"},
            "subjects": [{"kind": "User", "name": "deployer", "apiGroup": "rbac.authorization.k8s.io"}],
        }
    )
    deployer = connect(kubeconfig=str(server.kubeconfig(tmp_path / "deployer", token="deployer-token")))
    target = Target("shop", "prod", place)
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": place}}
    proposal = propose(deployer, [namespace, config(place), ray_service(place)], target)
    assert not [note for note in proposal.notes if "may not" in note]
    Revisions(deployer, target).begin(proposal.things, at="now", by="tester")
    assert carry_out(deployer, proposal) is not None
    left = propose(deployer, [namespace, ray_service(place)], target)
    assert [str(step.ref) for step in left.deletions] == ["ConfigMap settings"]
    carry_out(deployer, left)
    assert deployer.get(Ref(CONFIG_MAP, "settings", place)) is None
    assert deployer.get(Ref(RAY_SERVICE, "shop", place)) is not None
    admin.create(ray_cluster(place, worker_group("shared", 2)))
    assert deployer.edit(Ref(RAY_CLUSTER, "shop-raycluster-a", place), most_of(0, "shared", 8)) is not None


def test_a_pod_logs_in_by_its_service_account(
    server: ApiServer, admin: RestCluster, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot", "namespace": place}})
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": []}}
    made = server.call("POST", f"/api/v1/namespaces/{place}/serviceaccounts/robot/token", body)
    (tmp_path / "token").write_text(made["status"]["token"])
    host, _, port = server.url.removeprefix("https://").partition(":")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(server.certificate))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    pod = connect()
    assert pod.where.context == "in this cluster"
    with pytest.raises(NotPermitted, match=f"system:serviceaccount:{place}:robot may not get configmaps"):
        pod.get(Ref(CONFIG_MAP, "a", place))


def test_a_listing_of_many_pages_is_whole(admin: RestCluster, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cotenant.cluster.rest.PAGE", 3)
    for number in range(8):
        admin.apply(config(place, f"c{number}"))
    assert len(admin.list(CONFIG_MAP, place, {}).items) >= 8
