"""How many servers keep a queue's waits short: Erlang's formulas.

A. K. Erlang, "Solution of some problems in the theory of probabilities of significance in automatic telephone
exchanges" (1917): calls come at random, each of `servers` works on one at a time, calls wait in one line.
"""

from __future__ import annotations

import math

#: Above so many servers the formulas are replaced by square-root staffing, which they tend to.
_EXACT_UP_TO = 2_000


def waits_longer(servers: int, load: float, wait_in_services: float) -> float:
    """The part of calls that wait longer than some time.

    Args:
        servers: calls that can be worked on at once.
        load: calls that come in the time that one takes (Erlang); below `servers`, or everything waits for ever.
        wait_in_services: that time, measured in mean service times.
    """
    if load <= 0:
        return 0.0
    if load >= servers:
        return 1.0
    blocked = 1.0
    for count in range(1, servers + 1):
        blocked = load * blocked / (count + load * blocked)
    waits = blocked / (1 - load / servers * (1 - blocked))
    return waits * math.exp(-(servers - load) * wait_in_services)


def servers_for(load: float, wait_in_services: float, *, late: float, step: int = 1, most: int = 1 << 20) -> int:
    """The least multiple of `step` at which no more than the part `late` of calls waits longer; `most` if none is.

    Args:
        load: Erlang.
        wait_in_services: the wait to keep under, in mean service times.
        step: servers come in such groups: the slots of a replica.
    """
    if load <= 0:
        return 0
    if load > _EXACT_UP_TO:
        servers = load + 2 * math.sqrt(load)
        return min(most, math.ceil(servers / step) * step)
    servers = (math.floor(load / step) + 1) * step
    while servers < most and waits_longer(servers, load, wait_in_services) > late:
        servers += step
    return min(most, servers)
