"""What the client does when the network or the API server fails it. Runs over the twin and over a real API server.

A subclass gives `proxy`, which stands before the server, and `world`, which passes it by.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cotenant.cluster.edge import Cluster
from cotenant.cluster.kube import connect
from cotenant.cluster.objects import CONFIG_MAP, RAY_CLUSTER, RAY_SERVICE, Ref, Target
from cotenant.cluster.rest import RestCluster
from cotenant.cluster.retries import Patience
from cotenant.cluster.rollout import carry_out, propose, see_through
from cotenant.cluster.verdict import Patience as JudgePatience
from cotenant.cluster.watching import Watched
from cotenant.errors import Changed, ClusterBusy, ClusterError, FieldsOwned, NotConnected
from tests.contracts.api_server import write_kubeconfig
from tests.contracts.cluster import ClusterContract, World, config, most_of, ray_cluster, ray_service, worker_group
from tests.contracts.fault_proxy import Fault, Proxy
from tests.contracts.ray_statuses import applications, status

ATTEMPTS = 4


class HastyClock:
    """Real time, but nobody sleeps long; it keeps what was asked for."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def now(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        time.sleep(min(seconds, 0.05))


class ClusterFaultsContract:
    namespace = ClusterContract.namespace

    @pytest.fixture
    def clock(self) -> HastyClock:
        return HastyClock()

    @pytest.fixture
    def cluster(self, proxy: Proxy, clock: HastyClock, tmp_path: Path) -> RestCluster:
        file = tmp_path / "config"
        write_kubeconfig(file, {"test": {"server": proxy.url}}, {"tester": {"token": "admin-token"}})
        return connect(kubeconfig=str(file), patience=Patience(attempts=ATTEMPTS), clock=clock)

    @pytest.fixture(autouse=True)
    def _faults_come_after_the_namespace(self, namespace: str, proxy: Proxy) -> Iterator[None]:
        proxy.seen.clear()
        yield
        proxy.faults.clear()

    @pytest.mark.parametrize("code", [429, 500, 502, 503, 504])
    def test_a_server_that_is_busy_is_asked_again(
        self, cluster: Cluster, proxy: Proxy, namespace: str, code: int
    ) -> None:
        proxy.faults.append(Fault("refuse", "PATCH", "configmaps", code=code, times=2))
        assert cluster.apply(config(namespace))["data"] == {"size": "1"}
        assert proxy.count("PATCH", "configmaps") == 3

    def test_retry_after_is_waited_for(self, cluster: Cluster, proxy: Proxy, clock: HastyClock, namespace: str) -> None:
        proxy.faults.append(Fault("refuse", "GET", "configmaps", code=429, headers={"Retry-After": "7"}))
        assert cluster.get(Ref(CONFIG_MAP, "none", namespace)) is None
        assert clock.slept == [7.0]

    def test_a_server_that_stays_busy_is_given_up_and_said(
        self, cluster: Cluster, proxy: Proxy, namespace: str
    ) -> None:
        proxy.faults.append(Fault("refuse", "PATCH", code=503, body=b'{"message": "etcd has no leader"}', times=99))
        with pytest.raises(ClusterBusy, match=r"apply ConfigMap settings in .*503 \(etcd has no leader\)"):
            cluster.apply(config(namespace))
        assert proxy.count("PATCH", "configmaps") == ATTEMPTS

    @pytest.mark.parametrize("what", ["reset", "reset late"])
    def test_a_connection_that_breaks_is_made_again(
        self, cluster: Cluster, proxy: Proxy, namespace: str, what: str
    ) -> None:
        """Late: the server did it, and its answer was lost."""
        proxy.faults += [Fault(what, "PATCH", times=2), Fault(what, "DELETE")]  # type: ignore[arg-type]
        assert cluster.apply(ray_service(namespace))["metadata"]["generation"] == 1
        cluster.delete(Ref(RAY_SERVICE, "shop", namespace))
        assert cluster.get(Ref(RAY_SERVICE, "shop", namespace)) is None

    @pytest.mark.parametrize("what", ["reset", "reset late"])
    def test_an_edit_whose_connection_breaks_is_made_again(
        self, cluster: Cluster, proxy: Proxy, namespace: str, what: str
    ) -> None:
        cluster.create(ray_cluster(namespace, worker_group("shared", 2)))
        proxy.faults.append(Fault(what, "PATCH", "rayclusters", times=2))  # type: ignore[arg-type]
        after = cluster.edit(Ref(RAY_CLUSTER, "shop-raycluster-a", namespace), most_of(0, "shared", 8))
        assert after is not None
        assert after["spec"]["workerGroupSpecs"][0]["maxReplicas"] == 8

    def test_an_edit_that_finds_something_else_is_sent_once(
        self, cluster: Cluster, proxy: Proxy, namespace: str
    ) -> None:
        cluster.create(ray_cluster(namespace, worker_group("shared", 2)))
        with pytest.raises(Changed):
            cluster.edit(Ref(RAY_CLUSTER, "shop-raycluster-a", namespace), most_of(0, "front", 8))
        assert proxy.count("PATCH", "rayclusters") == 1

    def test_a_server_that_is_not_there_is_said(self, tmp_path: Path, clock: HastyClock) -> None:
        file = tmp_path / "config"
        write_kubeconfig(file, {"gone": {"server": "http://127.0.0.1:9"}}, {"tester": {"token": "x"}})
        cluster = connect(kubeconfig=str(file), patience=Patience(attempts=2), clock=clock)
        with pytest.raises(ClusterBusy, match=r"gone \(http://127.0.0.1:9\) does not answer"):
            cluster.list(CONFIG_MAP, "default")

    def test_two_writers_that_met_are_no_error(self, cluster: Cluster, proxy: Proxy, namespace: str) -> None:
        body = {"kind": "Status", "code": 409, "reason": "Conflict", "message": "the object has been modified"}
        proxy.faults.append(Fault("refuse", "PATCH", code=409, body=json.dumps(body).encode(), times=2))
        assert cluster.apply(config(namespace))["data"] == {"size": "1"}

    def test_a_field_of_somebody_else_is_asked_for_once(
        self, cluster: Cluster, proxy: Proxy, world: World, namespace: str
    ) -> None:
        cluster.apply(config(namespace))
        world.patch(Ref(CONFIG_MAP, "settings", namespace), {"data": {"size": "9"}}, "kubectl-edit")
        before = proxy.count("PATCH", "configmaps")
        with pytest.raises(FieldsOwned, match="--force-conflicts"):
            cluster.apply(config(namespace))
        assert proxy.count("PATCH", "configmaps") == before + 1

    def test_a_login_that_is_refused_is_said_at_once(self, cluster: Cluster, proxy: Proxy, namespace: str) -> None:
        proxy.faults.append(Fault("refuse", "GET", "configmaps", code=401, body=b'{"message": "Unauthorized"}'))
        with pytest.raises(NotConnected, match=r"Unauthorized.*log in again"):
            cluster.get(Ref(CONFIG_MAP, "a", namespace))

    def test_what_is_no_api_server_is_said(self, cluster: Cluster, proxy: Proxy, namespace: str) -> None:
        proxy.faults.append(Fault("refuse", "GET", "configmaps", code=200, body=b"<html>Sign in</html>"))
        with pytest.raises(ClusterError, match=r"no Kubernetes API server.*Sign in"):
            cluster.get(Ref(CONFIG_MAP, "a", namespace))

    def test_a_listing_whose_version_has_gone_is_begun_again(
        self, cluster: Cluster, proxy: Proxy, namespace: str
    ) -> None:
        cluster.apply(config(namespace))
        body = {"kind": "Status", "code": 410, "reason": "Expired", "message": "the continue token is too old"}
        proxy.faults.append(Fault("refuse", "GET", "configmaps", code=410, body=json.dumps(body).encode()))
        names = [each["metadata"]["name"] for each in cluster.list(CONFIG_MAP, namespace).items]
        assert "settings" in names

    @pytest.mark.parametrize(
        "fault",
        [
            Fault("cut", lines=0),
            Fault("cut", lines=1),
            Fault("truncate", lines=0),
            Fault("truncate", lines=1),
            Fault("expire", lines=0),
            Fault("refuse", containing="watch=true", code=410),
            Fault("refuse", containing="watch=true", code=503, times=2),
            Fault("reset", containing="watch=true", times=2),
        ],
        ids=lambda fault: f"{fault.what} {fault.code if fault.what == 'refuse' else fault.lines}",
    )
    def test_a_watch_that_breaks_misses_nothing(
        self, cluster: Cluster, proxy: Proxy, world: World, namespace: str, fault: Fault
    ) -> None:
        cluster.apply(ray_service(namespace))
        ref = Ref(RAY_SERVICE, "shop", namespace)
        watched = Watched(cluster, ref)
        assert watched.next(1.0) is not None
        proxy.faults.append(Fault(fault.what, containing=fault.containing, code=fault.code, lines=fault.lines, times=2))
        for number in range(1, 4):
            world.set_status(ref, {"serviceStatus": "Running", "numServeEndpoints": number})
        seen = 0
        until = time.monotonic() + 20
        while seen < 3 and time.monotonic() < until:
            thing = watched.next(1.0)
            assert thing is not None
            now = int((thing.get("status") or {}).get("numServeEndpoints", 0))
            assert now >= seen
            seen = now
        assert seen == 3

    def test_a_rollout_comes_through_all_of_it(
        self, cluster: Cluster, proxy: Proxy, world: World, namespace: str
    ) -> None:
        target = Target("shop", "prod", namespace)
        proxy.faults += [
            Fault("reset late", "PATCH", "rayservices"),
            Fault("refuse", "PATCH", "rayservices", code=503, times=2),
            Fault("refuse", "GET", "configmaps", code=429, headers={"Retry-After": "1"}),
            Fault("cut", lines=0),
            Fault("truncate", lines=0),
            Fault("expire", lines=0),
            Fault("reset", containing="watch=true", times=99),
        ]
        proposal = propose(cluster, [config(namespace), ray_service(namespace)], target)
        assert [step.action for step in proposal.changes] == ["create", "create"]
        applied = carry_out(cluster, proposal)
        assert applied is not None

        def operate() -> None:
            ref = Ref(RAY_SERVICE, "shop", namespace)
            time.sleep(0.5)
            world.set_status(ref, status(1, pending=applications(writer="DEPLOYING")))
            time.sleep(1.0)
            proxy.faults.clear()
            world.set_status(ref, status(1, active=applications(writer="RUNNING")))

        operator = threading.Thread(target=operate)
        operator.start()
        patience = JudgePatience(steady_s=0.5)
        *_, last = see_through(cluster, applied, timeout_s=60, look_s=1.0, patience=patience)
        operator.join()
        assert last.verdict.standing == "healthy"
