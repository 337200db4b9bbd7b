"""Topics, subscriptions and rights that the set-up script needs to know by name.

`cotenant jobs setup` makes them and knows their settings. These are names only, given by who may ask the jobs package
(`cotenant.cli.queue_names`), so that there is one list of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Right:
    """A role on a topic, subscription or bucket, by its short name."""

    kind: str
    name: str
    role: str


@dataclass(frozen=True)
class Queue:
    """What jobs go through. `rights` are the environment's account's, `agent_rights` those of Pub/Sub's own agent."""

    project: str
    topics: tuple[str, ...] = ()
    subscriptions: tuple[str, ...] = ()
    rights: tuple[Right, ...] = ()
    agent_rights: tuple[Right, ...] = ()


def right_lines(rights: Sequence[Right]) -> list[str]:
    """Rights as scripts read them: `kind name role`."""
    return [f"{right.kind} {right.name} {right.role}" for right in rights]
