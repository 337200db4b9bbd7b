"""The only file that knows the `kubernetes` package: which cluster, with which login, and how a request is sent.

From outside it takes a context of the kubeconfig (`KUBECONFIG`, else `~/.kube/config`); in a pod without one, the
pod's service account. Logins that run out are renewed by the package before each request.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import urllib3
import yaml
from kubernetes import client, config

from cotenant.cluster.edge import Clock, Where
from cotenant.cluster.rest import Reply, Request, RestCluster, WireBroken
from cotenant.cluster.retries import Patience
from cotenant.errors import NotConnected

CONNECT_S = 10.0
_IN_CLUSTER = "in this cluster"
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def connect(
    context: str | None = None,
    *,
    kubeconfig: str | None = None,
    patience: Patience | None = None,
    clock: Clock | None = None,
) -> RestCluster:
    """A cluster, not yet asked anything. Raises NotConnected, with the contexts that there are."""
    files = kubeconfig or os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    settings = client.Configuration()
    if context is None and not _exists(files) and os.environ.get("KUBERNETES_SERVICE_HOST"):
        where = _from_the_pod(settings)
    else:
        where = _from_a_context(settings, files, context)
    settings.retries = False
    settings.keep_alive = True
    return RestCluster(KubeWire(client.ApiClient(settings)), where, patience=patience, clock=clock)


def _exists(files: str) -> bool:
    return any(Path(file).expanduser().is_file() for file in files.split(os.pathsep) if file)


def _from_the_pod(settings: client.Configuration) -> Where:
    try:
        config.load_incluster_config(client_configuration=settings)
    except config.ConfigException as error:
        raise NotConnected(
            f"this pod has no login to its cluster ({error}); give it a service account, with its token mounted"
        ) from error
    namespace = "?"
    with suppress(OSError):
        namespace = _NAMESPACE_FILE.read_text(encoding="utf-8").strip()
    return Where(_IN_CLUSTER, settings.host, f"the service account of this pod (namespace {namespace})")


def _from_a_context(settings: client.Configuration, files: str, context: str | None) -> Where:
    if not _exists(files):
        raise NotConnected(
            f"there is no kubeconfig at {files}; for GKE make one with gcloud container clusters get-credentials "
            "CLUSTER --region REGION, or set KUBECONFIG"
        )
    read = list(_read(files))
    users = {str(each["name"]): str((each.get("context") or {}).get("user") or "") for each in _all(read, "contexts")}
    chosen = context or next((str(each["current-context"]) for each in read if each.get("current-context")), None)
    if chosen is None or chosen not in users:
        have = ", ".join(users) or "none"
        wanted = f"there is no context {chosen} in {files}" if chosen else f"{files} has no current context"
        raise NotConnected(f"{wanted}; there are: {have}; name one with --context")
    try:
        config.load_kube_config(config_file=files, context=chosen, client_configuration=settings, persist_config=False)
    except (config.ConfigException, OSError, ValueError, KeyError, TypeError) as error:
        raise NotConnected(f"context {chosen} of {files} can't be used: {_one_line(error)}") from error
    _require_login(settings, read, chosen, users[chosen])
    return Where(chosen, str(settings.host), users[chosen])


def _read(files: str) -> Iterator[Mapping[str, Any]]:
    """The kubeconfigs, in the order in which they count."""
    for file in filter(_exists, files.split(os.pathsep)):
        try:
            read = yaml.safe_load(Path(file).expanduser().read_text(encoding="utf-8")) or {}
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise NotConnected(f"the kubeconfig {file} can't be read: {_one_line(error)}") from error
        if not isinstance(read, Mapping):
            raise NotConnected(f"the kubeconfig {file} is none: it holds a {type(read).__name__}, not a mapping")
        yield read


def _all(read: Iterable[Mapping[str, Any]], section: str) -> list[Mapping[str, Any]]:
    listed = [each for file in read for each in file.get(section) or ()]
    return [each for each in listed if isinstance(each, Mapping) and "name" in each]


def _require_login(settings: client.Configuration, read: Sequence[Mapping[str, Any]], context: str, user: str) -> None:
    """The package goes on without a login where the helper that makes one fails; the API server's 401 says less."""
    if settings.api_key or settings.cert_file or settings.username:
        return
    logins = [each.get("user") or {} for each in _all(read, "users") if each["name"] == user]
    command = next((each["exec"].get("command") for each in logins if each.get("exec")), None)
    if command:
        raise NotConnected(
            f"context {context} logs in by {command}, which gave no login; install it if it is missing "
            "(gcloud components install gke-gcloud-auth-plugin), or run it by hand to see why"
        )


class KubeWire:
    """Sends requests by the package's own client, which has the login and the TLS settings."""

    def __init__(self, api: client.ApiClient) -> None:
        self._api = api

    def send(self, request: Request) -> Reply:
        headers = {"Accept": "application/json", "User-Agent": "cotenant"}
        if request.body is not None:
            headers["Content-Type"] = request.content_type
        try:
            serialized = self._api.param_serialize(
                request.method,
                request.path,
                query_params=list(request.query.items()),
                header_params=headers,
                auth_settings=["BearerToken"],
            )
            method, url, header_params, _, _ = serialized
            body = request.body.decode() if request.body is not None else None
            response = self._api.rest_client.pool_manager.request(
                method,
                url,
                body=body,
                headers=header_params,
                timeout=urllib3.Timeout(connect=CONNECT_S, read=request.timeout_s),
                preload_content=False,
                redirect=False,
            )
        except urllib3.exceptions.SSLError as error:
            raise NotConnected(
                f"{self._api.configuration.host} is not trusted: {_one_line(error)}; fetch the cluster's credentials "
                "again, its certificate may have changed"
            ) from error
        except urllib3.exceptions.LocationParseError as error:
            raise NotConnected(f"the context's server {self._api.configuration.host} is no address") from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise WireBroken(_one_line(error)) from error
        return _KubeReply(response)


class _KubeReply:
    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        self._response = response

    @property
    def status(self) -> int:
        return self._response.status

    @property
    def headers(self) -> Mapping[str, str]:
        return self._response.headers

    def read(self) -> bytes:
        try:
            body = self._response.read()
            self._response.release_conn()
            return body
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise WireBroken(_one_line(error)) from error

    def chunks(self) -> Iterator[bytes]:
        try:
            yield from self._response.stream(1 << 16)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise WireBroken(_one_line(error)) from error
        finally:
            self._response.close()


def _one_line(error: BaseException) -> str:
    reason = getattr(error, "reason", None)
    told = reason if isinstance(reason, BaseException) else error
    text = " ".join(str(told).split()) or type(told).__name__
    return text.rpartition(">: ")[2]
