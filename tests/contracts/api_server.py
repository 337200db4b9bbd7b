"""A real kube-apiserver with etcd on loopback: KubeRay's CRDs loaded, RBAC on, no controllers and no nodes.

`scripts/kube_apiserver` builds it (once, some minutes). It is version 1.20, so what came to Kubernetes later is not
tried here: of the CRDs, rules in CEL are dropped by it.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
BUILT = Path(os.environ.get("COTENANT_KUBE_APISERVER", Path.home() / ".cache" / "cotenant" / "kube-apiserver"))
SCHEMAS = Path(os.environ.get("COTENANT_KUBERAY_CRDS") or ROOT.parent / "shared" / "schemas")
#: The kinds that the client knows. Ray clusters are the operator's: a test makes them in its place.
CRDS = "kuberay-*-ray*s.crd.yaml"
READY_S = 120.0


@dataclass(frozen=True)
class ApiServer:
    url: str
    folder: Path

    @property
    def certificate(self) -> Path:
        return self.folder / "certs" / "apiserver.crt"

    def kubeconfig(self, file: Path, *, token: str = "admin-token", server: str | None = None) -> Path:
        """Writes a kubeconfig with a context `test` for the holder of `token`, straight or by a proxy at `server`."""
        cluster: dict[str, Any] = {"server": server or self.url}
        if server is None:
            cluster["certificate-authority"] = str(self.certificate)
        write_kubeconfig(file, {"test": cluster}, {"tester": {"token": token}})
        return file

    def call(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Any:
        """As the administrator, without any code of ours in between. Raises urllib.error.HTTPError."""
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": "Bearer admin-token", "Content-Type": content_type},
        )
        trust = ssl.create_default_context(cafile=str(self.certificate))
        try:
            with urllib.request.urlopen(request, context=trust, timeout=30) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            error.add_note(error.read().decode(errors="replace")[:2000])
            raise

    def patch(self, path: str, changes: Mapping[str, Any], manager: str) -> Any:
        """As another client does: a merge patch by a field manager of its own."""
        return self.call("PATCH", f"{path}?fieldManager={manager}", changes, "application/merge-patch+json")


def write_kubeconfig(
    file: Path,
    clusters: Mapping[str, Mapping[str, Any]],
    users: Mapping[str, Mapping[str, Any]],
    current: str | None = None,
) -> None:
    """One context for each cluster, by its name, all for the one user."""
    user = next(iter(users))
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": current or next(iter(clusters)),
        "clusters": [{"name": name, "cluster": dict(cluster)} for name, cluster in clusters.items()],
        "contexts": [{"name": name, "context": {"cluster": name, "user": user}} for name in clusters],
        "users": [{"name": name, "user": dict(login)} for name, login in users.items()],
    }
    file.write_text(yaml.safe_dump(config), encoding="utf-8")


def require_api_server() -> ApiServer:
    """The one of this test run, started when first asked for; skips the test where it was not built."""
    lacking = [name for name in ("kube-apiserver", "etcd") if not (BUILT / name).is_file()]
    if lacking:
        pytest.skip(f"no {' and '.join(lacking)} in {BUILT}: scripts/kube_apiserver builds them, once, in some minutes")
    if not list(SCHEMAS.glob(CRDS)):
        pytest.skip(f"no CRDs of KubeRay in {SCHEMAS}; name their folder with COTENANT_KUBERAY_CRDS")
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a key with")
    started = _started()
    if isinstance(started, Exception):
        raise AssertionError(f"the API server did not start: {started}") from started
    return started


@functools.cache
def _started() -> ApiServer | Exception:
    """A failure is kept too: it is waited for once, not by every test."""
    try:
        return _start()
    except Exception as error:
        return error


def _start() -> ApiServer:
    folder = Path(tempfile.mkdtemp(prefix="cotenant-apiserver-"))
    client, peer, secure = _free_ports(3)
    tokens = ["admin-token,admin,1,system:masters", "nobody-token,nobody,2", "deployer-token,deployer,3"]
    (folder / "tokens.csv").write_text("\n".join(tokens) + "\n")
    key = folder / "accounts.key"
    subprocess.run(["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True)
    etcd = [
        str(BUILT / "etcd"),
        f"--data-dir={folder / 'etcd'}",
        f"--listen-client-urls=http://127.0.0.1:{client}",
        f"--advertise-client-urls=http://127.0.0.1:{client}",
        f"--listen-peer-urls=http://127.0.0.1:{peer}",
        f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
        f"--initial-cluster=default=http://127.0.0.1:{peer}",
    ]
    api = [
        str(BUILT / "kube-apiserver"),
        f"--etcd-servers=http://127.0.0.1:{client}",
        "--bind-address=127.0.0.1",
        f"--secure-port={secure}",
        f"--cert-dir={folder / 'certs'}",
        f"--token-auth-file={folder / 'tokens.csv'}",
        "--authorization-mode=RBAC",
        f"--service-account-key-file={key}",
        f"--service-account-signing-key-file={key}",
        "--service-account-issuer=https://kubernetes.default.svc",
        "--service-cluster-ip-range=10.0.0.0/24",
        "--endpoint-reconciler-type=none",
        "--disable-admission-plugins=ServiceAccount",
    ]
    for name, command in (("etcd", etcd), ("apiserver", api)):
        log = (folder / f"{name}.log").open("wb")
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        atexit.register(_stop, process, folder)
    server = ApiServer(f"https://127.0.0.1:{secure}", folder)
    _wait_until_ready(server)
    _load_crds(server)
    return server


def _stop(process: subprocess.Popen[bytes], folder: Path) -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(5)
    process.kill()
    shutil.rmtree(folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _wait_until_ready(server: ApiServer) -> None:
    until = time.monotonic() + READY_S
    while True:
        try:
            server.call("GET", "/api/v1/namespaces/default")
            return
        except (OSError, ssl.SSLError, urllib.error.URLError) as error:
            if time.monotonic() > until:
                log = (server.folder / "apiserver.log").read_text(errors="replace")[-2000:]
                raise AssertionError(f"kube-apiserver did not start ({error}):\n{log}") from error
            time.sleep(0.1)


def _load_crds(server: ApiServer) -> None:
    names = []
    for file in sorted(SCHEMAS.glob(CRDS)):
        crd = yaml.load(file.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        crd["spec"]["versions"] = [each for each in crd["spec"]["versions"] if each["storage"]]
        server.call("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd)
        names.append(crd["spec"]["names"]["plural"])
    until = time.monotonic() + READY_S
    while time.monotonic() < until:
        with suppress(urllib.error.HTTPError):
            told = {each["name"] for each in server.call("GET", "/apis/ray.io/v1")["resources"]}
            if told.issuperset(names):
                for name in names:
                    server.call("GET", f"/apis/ray.io/v1/{name}")
                return
        time.sleep(0.1)
    raise AssertionError(f"the API server does not serve {', '.join(names)}")
