"""Ray's dashboard as a client sees it: Serve applications, and what resources the cluster has.

The only file that speaks to that API. Its answers become small values; its failures become our errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from cotenant.errors import DeployFailed, EnvironmentFault

RUNNING = "RUNNING"
#: An application in one of these will not become RUNNING by waiting.
FAILED = frozenset({"DEPLOY_FAILED", "UNHEALTHY"})


@dataclass(frozen=True)
class ApplicationStatus:
    """One Serve application: Serve's status word, its message, its replicas by state and their process ids."""

    name: str
    status: str
    message: str
    replicas: Mapping[str, int]
    pids: tuple[int, ...]

    @property
    def ready(self) -> bool:
        return self.status == RUNNING

    @property
    def failed(self) -> bool:
        return self.status in FAILED


class ServeApi:
    """Client of the Serve REST API at a dashboard's base URL. Use as a context manager."""

    def __init__(self, dashboard: str, token: Path | str | None) -> None:
        headers = {"authorization": f"Bearer {_read(token)}"} if token else {}
        self._url = dashboard.rstrip("/")
        self._client = httpx.Client(base_url=self._url, headers=headers, timeout=60, trust_env=False)

    def __enter__(self) -> ServeApi:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def deploy(self, config: Mapping[str, Any]) -> None:
        """Hand Serve a whole config. Raises DeployFailed if it refuses it."""
        response = self._request("PUT", "/api/serve/applications/", json=config)
        if response.status_code == 400:
            raise DeployFailed(f"Serve refuses the config: {response.text.strip()[:2000]}")
        self._expect(response)

    def applications(self) -> dict[str, ApplicationStatus]:
        """Every application that Serve knows, by name."""
        response = self._request("GET", "/api/serve/applications/")
        self._expect(response)
        found = {}
        for name, raw in response.json().get("applications", {}).items():
            replicas: dict[str, int] = {}
            pids = []
            messages = [raw.get("message") or ""]
            for deployment in (raw.get("deployments") or {}).values():
                messages.append(deployment.get("message") or "")
                for replica in deployment.get("replicas") or []:
                    state = str(replica.get("state"))
                    replicas[state] = replicas.get(state, 0) + 1
                    if replica.get("pid"):
                        pids.append(int(replica["pid"]))
            found[name] = ApplicationStatus(
                name=name,
                status=str(raw.get("status")),
                message="\n".join(dict.fromkeys(m.strip() for m in messages if m.strip())),
                replicas=replicas,
                pids=tuple(pids),
            )
        return found

    def shutdown(self) -> None:
        """Drain and delete every application."""
        self._expect(self._request("DELETE", "/api/serve/applications/"))

    def cluster_resources(self) -> dict[str, float]:
        """Total resources of the cluster by Ray's names (CPU, GPU, custom ones)."""
        response = self._request("GET", "/api/v0/nodes", params={"detail": "true", "limit": 10_000})
        self._expect(response)
        total: dict[str, float] = {}
        for node in response.json()["data"]["result"]["result"]:
            if node.get("state") == "ALIVE":
                for name, amount in (node.get("resources_total") or {}).items():
                    total[name] = total.get(name, 0.0) + float(amount)
        return total

    def _request(self, method: str, path: str, **more: Any) -> httpx.Response:
        try:
            return self._client.request(method, path, **more)
        except httpx.HTTPError as error:
            raise EnvironmentFault(
                f"Ray's dashboard at {self._url} does not answer ({type(error).__name__}: {error}); "
                "is Ray running there? `cotenant up` starts one"
            ) from error

    def _expect(self, response: httpx.Response) -> None:
        if response.status_code in (401, 403):
            raise EnvironmentFault(
                f"Ray's dashboard at {self._url} refuses our token; "
                "set RAY_AUTH_TOKEN_PATH to the file with that cluster's token"
            )
        if response.status_code >= 400:
            raise EnvironmentFault(
                f"Ray's dashboard at {self._url} answers {response.status_code}: {response.text.strip()[:1000]}"
            )


def _read(token: Path | str) -> str:
    try:
        return Path(token).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise EnvironmentFault(
            f"the Ray token in {token} can't be read ({type(error).__name__}); "
            "set RAY_AUTH_TOKEN_PATH to the file with that cluster's token"
        ) from error
