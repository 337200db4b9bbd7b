"""What jobs there are in the chaos tests, and how their engine treats them."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cotenant.calls import Directory, Served
from cotenant.jobs.model import Job, parse_job
from cotenant.jobs.queue.lanes import MAIN, lane_of
from cotenant.jobs.queue.source import Message

DIRECTORY = Directory(
    (
        Served("writer", "llm", models=("tiny", "writer"), slots=4, deadline_s=30),
        Served("mockups", "mockup", templates=("mug",), slots=2, deadline_s=30),
    )
)
#: Above what a result line embeds.
LARGE_BYTES = 1 << 20

#: Kinds of jobs: seconds that a run takes at the least and most, and how the first, second, … run ends.
KINDS: Mapping[str, tuple[tuple[float, float], tuple[Any, ...]]] = {
    "quick": ((0.0, 0.3), ()),
    "steady": ((0.5, 4.0), ()),
    "long": ((12.0, 45.0), ()),
    "refused": ((0.0, 0.2), (400,)),
    "shaky": ((0.0, 2.0), (500, 200)),
    "crashing": ((0.0, 2.0), ("crash", 200)),
    "deadly": ((0.5, 2.0), ("die", 200)),
    "greedy": ((0.5, 1.0), ("over", 200)),
    "crowded": ((0.0, 0.2), ("full", 429, "full", 429, 200)),
    "hopeless": ((0.0, 1.0), (500,)),
    "endless": ((0.0, 0.0), ("endless",)),
    "large": ((0.0, 0.5), ()),
    "unknown": ((0.0, 0.0), ()),
    "malformed": ((0.0, 0.0), ()),
}
FAIL_FOR_EVER = frozenset({"hopeless", "endless"})
#: Kinds that a desk accepts.
ACCEPTED = tuple(kind for kind in KINDS if kind not in ("unknown", "malformed"))


@dataclass(frozen=True)
class Sent:
    """A message that was published, by which lane, and what kind of job it carries."""

    message: Message
    lane: str
    kind: str
    job: Job | None = None


def line_of(kind: str, number: int, rng: random.Random) -> dict[str, Any]:
    """A job of this kind as a line. `number` makes it another one than all others."""
    (low, high), endings = KINDS[kind]
    workload = "writer" if kind == "large" else rng.choice(["writer", "mockups"])
    body: dict[str, Any] = {"seconds": round(rng.uniform(low, high), 3), "nonce": number}
    if endings:
        body["endings"] = endings
    if kind == "large":
        body["pad"] = LARGE_BYTES
    if kind == "unknown":
        workload, body = "writer", {"model": "nobody", "nonce": number}
    elif workload == "writer":
        body |= {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
    else:
        body["template"] = "mug"
    url = "/v1/chat/completions" if workload == "writer" else "/v1/mockups"
    return {"custom_id": f"{kind}{number}", "method": "POST", "url": url, "body": body}


def workload_of_line(line: Mapping[str, Any]) -> str:
    return "mockups" if line["url"] == "/v1/mockups" else "writer"


def sent_of(
    kind: str, number: int, rng: random.Random, attributes: Mapping[str, str], *, own_lane: bool, key: str = ""
) -> Sent:
    """A message of this kind. One without attributes has no batch, so its job is known once it has a message id."""
    line = line_of(kind if kind != "malformed" else "quick", number, rng)
    lane = lane_of(workload_of_line(line)) if own_lane else MAIN
    if key:
        # Order is kept within a lane, and jobs of the main lane go on to that of their workload.
        line["body"]["key"] = key = f"{key} of {workload_of_line(line)}, {'own' if own_lane else 'main'} lane"
    if kind == "malformed":
        return Sent(Message(b'{"custom_id": "m%d"' % number, attributes), lane, kind)
    data = json.dumps(line).encode()
    return Sent(Message(data, attributes, key), lane, kind, parse_job(data, attributes, "") if attributes else None)
