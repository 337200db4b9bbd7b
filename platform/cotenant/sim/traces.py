"""Requests from files and from chance. Every reader says which line is wrong, and why."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from heapq import merge
from pathlib import Path

from cotenant.errors import TraceError
from cotenant.sim.model import Request

#: The columns of Azure's LLM inference trace of 2023 (github.com/Azure/AzurePublicDataset, CC-BY 4.0).
AZURE = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]
#: A deadline that is past already is one that is as near as can be.
_LEAST_S = 0.001


@dataclass(frozen=True)
class TokenSpeed:
    """How long a call of so many tokens has a slot."""

    prefill_per_s: float = 4000.0
    """Of the prompt."""
    decode_per_s: float = 30.0
    """Of the answer, for one call among those that share the engine."""

    def service_s(self, prompt: float, answer: float) -> float:
        return prompt / self.prefill_per_s + answer / self.decode_per_s


def read_trace(path: Path, workloads: Sequence[str], *, all_for: str | None, speed: TokenSpeed) -> list[Request]:
    """The requests of a trace, in the order of their times, the first at 0.

    A CSV file with the columns `at_s`, `service_s` and, unless `all_for` names the workload, `workload`; the same as
    JSON lines; or Azure's LLM trace. If they are there: `within_s` (the call may wait so long) or `deadline_s` (until
    then, on the clock of `at_s`), and `units` (its cost as it can be told beforehand).

    Raises:
        TraceError: the file can't be read, or a line is not one.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"{path} can't be read: {error}") from error
    rows = _json_rows(path, text) if text.lstrip().startswith("{") else _csv_rows(path, text)
    found: list[Request] = []
    for number, row in rows:
        try:
            found.append(_request(row, workloads, all_for, speed))
        except (KeyError, ValueError, TypeError) as error:
            raise TraceError(f"{path}:{number}: {_why(error)}") from error
    if not found:
        raise TraceError(f"{path} has no requests")
    found.sort()
    first_s = found[0].at_s
    return [request._replace(at_s=request.at_s - first_s) for request in found]


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, object]]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise TraceError(f"{path}:{number}: no JSON: {error}") from error
            yield number, row


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, object]]]:
    reader = csv.DictReader(text.splitlines())
    columns = set(reader.fieldnames or ())
    if not ({"at_s", "service_s"} <= columns or set(AZURE) <= columns):
        raise TraceError(
            f"{path}: needs the columns at_s, service_s and workload, or Azure's {', '.join(AZURE)}; "
            f"has {', '.join(sorted(columns)) or 'none'}"
        )
    for row in reader:
        yield reader.line_num, row


def _request(row: Mapping[str, object], workloads: Sequence[str], all_for: str | None, speed: TokenSpeed) -> Request:
    if AZURE[0] in row:
        at_s = datetime.fromisoformat(str(row[AZURE[0]])[:26]).timestamp()
        service_s = speed.service_s(_number(row, AZURE[1]), _number(row, AZURE[2]))
    else:
        at_s, service_s = _number(row, "at_s"), _number(row, "service_s")
    name = all_for if all_for is not None else row.get("workload")
    if name is None:
        raise ValueError("names no workload; give --workload for all of it")
    if name not in workloads:
        raise ValueError(f"there is no workload {name}; the platform has {', '.join(workloads)}")
    if _has(row, "deadline_s"):
        within_s = max(_LEAST_S, _number(row, "deadline_s") - at_s)
    else:
        within_s = _number(row, "within_s") if _has(row, "within_s") else 0.0
    units = _number(row, "units") if _has(row, "units") else 1.0
    return Request(at_s, workloads.index(str(name)), service_s, within_s, units)


def _has(row: Mapping[str, object], column: str) -> bool:
    return row.get(column) not in (None, "")


def _number(row: Mapping[str, object], column: str) -> float:
    value = float(str(row[column]))
    if not 0 <= value < float("inf"):
        raise ValueError(f"{column} is {value}; it is a number of 0 or more")
    return value


def _why(error: Exception) -> str:
    return f"has no {error.args[0]}" if isinstance(error, KeyError) else str(error)


@dataclass(frozen=True)
class Load:
    """Calls that come at random: `per_s` on average, each for `service_s` on average (exponential)."""

    workload: int
    per_s: float
    service_s: float
    burst: float = 1.0
    """So many times the rate in the first tenth of every hour, and less in the rest of it; 1 is an even stream."""
    within_s: float = 0.0
    """Each may wait so long, if that is longer than the workload's target."""

    def requests(self, until_s: float, rng: random.Random) -> Iterator[Request]:
        high = self.per_s * self.burst
        rest = max(0.0, (self.per_s - high / 10) / 0.9)
        most = max(high, rest)
        now = 0.0
        while most > 0 and (now := now + rng.expovariate(most)) < until_s:
            # Thinning (Lewis and Shedler, 1979): come at the highest rate, keep the part that the moment's rate is.
            if rng.random() * most <= (high if now % 3600 < 360 else rest):
                yield Request(now, self.workload, rng.expovariate(1 / self.service_s), self.within_s)


def random_requests(loads: Sequence[Load], until_s: float, seed: int) -> Callable[[], Iterator[Request]]:
    """All loads together, in the order of their times; the same each time it is asked for."""

    def requests() -> Iterator[Request]:
        streams = (load.requests(until_s, random.Random(f"{seed}-{n}")) for n, load in enumerate(loads))
        return merge(*streams)

    return requests
