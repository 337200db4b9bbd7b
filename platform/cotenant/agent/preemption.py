"""Learns from Compute Engine's metadata server that this machine is about to be taken away.

A spot machine is told some 30 s before. `instance/preempted` then turns to TRUE, and a request with `wait_for_change`
is answered at that moment. Elsewhere nobody answers there, or in another way, and that ends the watch quietly.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

import httpx

from cotenant.telemetry.logs import event

LOG = logging.getLogger("cotenant.agent")

#: What Google's own client libraries let one set, and where the server is otherwise.
HOST_ENV, HOST = "GCE_METADATA_HOST", "169.254.169.254"
_PATH = "/computeMetadata/v1/instance/preempted"
_FLAVOR = {"Metadata-Flavor": "Google"}
_PROBE_S = 2.0
#: A request waits so long before it is repeated; one that failed is, after a pause.
_WAIT_S, _PAUSE_S = 300, 5.0


def metadata_url(environ: Mapping[str, str]) -> str:
    """Where the metadata server would be."""
    return f"http://{environ.get(HOST_ENV) or HOST}"


async def preempted(base_url: str, *, pause_s: float = _PAUSE_S) -> bool:
    """Return True when this machine is about to be taken away, and False, soon, where nobody tells.

    Args:
        base_url: of the metadata server.
        pause_s: seconds until it is asked again after it could not be.
    """
    # The metadata server is never behind a proxy.
    async with httpx.AsyncClient(base_url=base_url, headers=_FLAVOR, trust_env=False) as client:
        try:
            reply = await client.get(_PATH, timeout=_PROBE_S)
        except httpx.HTTPError:
            return False
        if not _tells(reply):
            return False
        event(LOG, "preemption_watched")
        while reply.text.strip() != "TRUE":
            waiting = {
                "wait_for_change": "true",
                "timeout_sec": str(_WAIT_S),
                "last_etag": reply.headers.get("etag", "0"),
            }
            try:
                answer = await client.get(_PATH, params=waiting, timeout=_WAIT_S + 30)
            except httpx.HTTPError:
                await asyncio.sleep(pause_s)
                continue
            if _tells(answer):
                reply = answer
            else:
                await asyncio.sleep(pause_s)
        return True


def _tells(reply: httpx.Response) -> bool:
    return reply.status_code == 200 and reply.headers.get("metadata-flavor") == "Google"
