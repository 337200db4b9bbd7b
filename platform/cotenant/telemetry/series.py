"""Metrics as plain values: what there is, and what it stands at. Who hosts them publishes them."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Metric(NamedTuple):
    """A metric's name, what it counts, and its labels."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    labels: tuple[str, ...]
    bounds: tuple[float, ...] = ()
    """Upper bounds of a histogram's buckets."""


class Row(NamedTuple):
    """One value. A counter's is its whole count since its process started; a histogram's is one observation."""

    name: str
    labels: dict[str, str]
    value: float
