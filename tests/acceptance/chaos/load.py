"""The jobs of a chaos run: which kinds, for whom, by which way and when, all drawn from one seed. Pure."""

from __future__ import annotations

import base64
import io
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from PIL import Image

from cotenant.jobs.model import DEFAULT_TENANT
from cotenant.jobs.queue.lanes import MAIN, lane_of

TENANTS = ("acme", "globex", "initech")
#: Kinds by their share of all jobs, in thousandths; the rest is `quick`.
SHARES: Mapping[str, int] = {
    "render": 30,
    "refused": 30,
    "shaky": 20,
    "long": 6,
    "large": 4,
    "big_body": 4,
    "cancelled": 8,
    "expired": 4,
    "deadly": 3,
    "hopeless": 3,
    "unknown": 3,
    "malformed": 3,
}
#: Ways by their share, in thousandths; the rest are messages to the main lane.
BATCHED, ALONE, OWN_LANE, BARE = 250, 30, 400, 30
#: Kinds that a desk accepts as they are.
_PLAIN = frozenset({"quick", "render", "refused", "shaky", "long", "large", "deadly", "hopeless"})
QUICK_S, LONG_S = (0.005, 0.1), (12.0, 25.0)
LARGE_BYTES = 1_200_000


@dataclass(frozen=True)
class Ask:
    """One job that is asked for: its line, for whom, and by which lane where it goes as a message.

    A bare one says neither tenant nor batch.
    """

    kind: str
    tenant: str
    batch: str
    line: Mapping[str, Any]
    lane: str = MAIN
    bare: bool = False

    @property
    def custom_id(self) -> str:
        return str(self.line["custom_id"])

    @property
    def nonce(self) -> Any:
        return self.line["body"].get("nonce")


@dataclass(frozen=True)
class Burst:
    """What is asked for at a moment of the run, in seconds from its beginning."""

    at_s: float
    messages: Sequence[Ask] = ()
    batch: Sequence[Ask] = ()
    """Lines of one file."""
    single: Ask | None = None


def make_load(seed: int, jobs: int, over_s: float) -> list[Burst]:
    """Bursts of `jobs` jobs in all, by time."""
    rng = random.Random(f"load {seed}")
    maker = _Maker(rng)
    bursts: list[Burst] = []
    left = jobs
    while left > 0:
        at_s = rng.uniform(0, over_s)
        way = rng.randrange(1000)
        size = min(left, rng.choice((1, 5, 20, 40, 80)))
        if way < BATCHED:
            tenant = rng.choice(TENANTS)
            asks = [maker.ask(f"file{len(bursts)}", tenant, plain=True) for _ in range(size)]
            bursts.append(Burst(at_s, batch=asks))
        elif way < BATCHED + ALONE * 10:
            size = 1
            bursts.append(Burst(at_s, single=maker.ask("", rng.choice(TENANTS), plain=True)))
        else:
            batch = f"messages{len(bursts)}"
            asks = [maker.ask(batch, rng.choice(TENANTS)) for _ in range(size)]
            bursts.append(Burst(at_s, messages=asks))
        left -= size
    # What takes many attempts has to begin early enough to be given up before the end.
    bursts = [replace(burst, at_s=burst.at_s / 4) if _hopeless(burst) else burst for burst in bursts]
    return sorted(bursts, key=lambda burst: burst.at_s)


def _hopeless(burst: Burst) -> bool:
    return any(ask.kind == "hopeless" for ask in (*burst.messages, *burst.batch, *filter(None, [burst.single])))


class _Maker:
    """Makes jobs, each another one."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._count = 0

    def ask(self, batch: str, tenant: str, *, plain: bool = False) -> Ask:
        rng = self._rng
        kind = self._kind()
        if plain and kind not in _PLAIN:
            kind = "quick"
        self._count += 1
        workload = "mockups" if kind == "render" else rng.choice(("writer", "writer", "writer", "painter"))
        line = self._line(kind, workload, f"{kind}-{self._count}")
        lane = lane_of(workload) if rng.randrange(1000) < OWN_LANE else MAIN
        bare = not plain and kind in _PLAIN and rng.randrange(1000) < BARE
        return Ask(kind, DEFAULT_TENANT if bare else tenant, batch, line, lane, bare)

    def _kind(self) -> str:
        at = self._rng.randrange(1000)
        for kind, share in SHARES.items():
            at -= share
            if at < 0:
                return kind
        return "quick"

    def _line(self, kind: str, workload: str, custom_id: str) -> dict[str, Any]:
        if workload == "mockups":
            body: dict[str, Any] = {
                "template": "mug", "artwork": artwork(), "size": 128, "samples": 4, "seed": self._count,
            }  # fmt: skip
            return {"custom_id": custom_id, "method": "POST", "url": "/v1/mockups", "body": body}
        seconds = self._rng.uniform(*(LONG_S if kind == "long" else QUICK_S))
        body = {"model": workload, "nonce": self._count, "seconds": round(seconds, 4)}
        endings: dict[str, Any] = {"refused": 400, "shaky": "once", "deadly": "die", "hopeless": 500}
        if kind in endings:
            body["ending"] = endings[kind]
        if kind == "large":
            body["pad"] = LARGE_BYTES
        if kind == "big_body":
            body["filler"] = "x" * LARGE_BYTES
        if kind == "unknown":
            body["model"] = "nobody"
        if workload == "writer":
            body["messages"] = [{"role": "user", "content": "hello"}]
        else:
            body["prompt"] = "a mug"
        url = "/v1/chat/completions" if workload == "writer" else "/v1/images/generations"
        return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def data_of(ask: Ask) -> bytes:
    """The line as bytes; of a malformed one, half of it."""
    data = json.dumps(ask.line).encode()
    return data[: len(data) // 2] if ask.kind == "malformed" else data


@cache
def artwork() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "#1e6ec8").save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
