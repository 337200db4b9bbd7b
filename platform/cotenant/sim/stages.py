"""How long the stages of a start take, and which of them a replica goes through.

The figures are ranges that people report, chosen so that their sums come near the 360, 240 and 120 s that one team told
of its own bursts (metric and pull, with streaming, with nodes preloaded): a model, not a measurement of any machine.
`DEFAULTS` can be overridden stage by stage, which is what figures of one's own are for.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any


class Image(str, Enum):
    """How a node gets the container image."""

    PULL = "pull"
    STREAM = "stream"
    """Artifact Registry's image streaming: the container starts while its files are still fetched."""
    BAKED = "baked"
    """On a secondary boot disk of the node."""
    THERE = "there"
    """Nothing to fetch: the node's own system has it."""


@dataclass(frozen=True)
class Span:
    """Seconds of one stage: at least, most often, at most. Drawn from the triangle between them."""

    least_s: float
    often_s: float
    most_s: float
    source: str = ""

    def draw(self, rng: random.Random) -> float:
        return rng.triangular(self.least_s, self.most_s, self.often_s) if self.most_s > self.least_s else self.often_s

    @property
    def mean_s(self) -> float:
        return (self.least_s + self.often_s + self.most_s) / 3


@dataclass(frozen=True)
class Stages:
    """The stages of a start, in their order."""

    node: Span = Span(50, 75, 120, "reported: from a pending pod to a ready node on GKE")
    driver: Span = Span(20, 35, 60, "reported: driver and device plugin on a new node")
    pull: Span = Span(70, 120, 190, "reported: a GPU image from a registry in the region")
    stream: Span = Span(2, 8, 20, "reported: image streaming, the first container of an image on a node")
    baked: Span = Span(1, 3, 8, "GKE's documentation: a secondary boot disk is up to 29 times as fast for 16 GB")
    process: Span = Span(8, 14, 25, "reported: container, Python imports, Ray's join")
    weights: Span = Span(15, 25, 60, "reported: an LLM's weights from a disk or a bucket")
    warm_up: Span = Span(5, 15, 40, "reported: compilation and CUDA graphs; 3 to 15 with a cache")
    wake: Span = Span(0.5, 2, 6, "reported: vLLM's sleep level 1, a pipeline back from host memory")

    def wake_s(self, rng: random.Random) -> float:
        return self.wake.draw(rng)

    def share_s(self, rng: random.Random) -> float:
        """On a node that is there."""
        return self.process.draw(rng) + self.weights.draw(rng) + self.warm_up.draw(rng)

    def node_s(self, rng: random.Random, image: Image) -> float:
        """Until a new node can run containers of the platform."""
        return (
            self.node.draw(rng) + self.driver.draw(rng) + (self.image(image).draw(rng) if image.value != "there" else 0)
        )

    def image(self, image: Image) -> Span:
        spans = {Image.PULL: self.pull, Image.STREAM: self.stream, Image.BAKED: self.baked}
        return spans.get(image, Span(0, 0, 0))

    @property
    def mean_share_s(self) -> float:
        return self.process.mean_s + self.weights.mean_s + self.warm_up.mean_s

    def mean_node_s(self, image: Image) -> float:
        return self.node.mean_s + self.driver.mean_s + self.image(image).mean_s


DEFAULTS = Stages()


@dataclass(frozen=True)
class Spot:
    """How spot nodes come and go. Both figures are assumed: they differ by zone, machine type and week."""

    losses_per_h: float = 0.05
    """How often a node is taken away, for each hour that it runs."""
    dry_s: float = 600.0
    """So long no node is to be had after that."""


SPOT = Spot()


def spot_of(given: object, spot: Spot = SPOT) -> Spot:
    """`spot` with some replaced: `{"losses_per_h": 0.2, "dry_s": 60}`.

    Raises:
        ValueError: it is no mapping of those two to numbers of 0 or more.
    """
    known = {field.name for field in fields(Spot)}
    if (
        not isinstance(given, Mapping)
        or not given.keys() <= known
        or not all(_number(one) and one >= 0 for one in given.values())
    ):
        raise ValueError(f"spot is {given!r}; give {' and '.join(sorted(known))}, each a number of 0 or more")
    return replace(spot, **{name: float(one) for name, one in given.items()})


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def overridden(given: Mapping[str, Any], stages: Stages = DEFAULTS) -> Stages:
    """`stages` with some replaced: `{"pull": [60, 90, 150], "wake": 1.5}`.

    Raises:
        ValueError: a stage of that name is not known, or its value is no number and no rising three.
    """
    known = {field.name for field in fields(Stages)}
    spans = {}
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"there is no stage {name!r}; stages are {', '.join(sorted(known))}")
        numbers = value if isinstance(value, list) else [value] * 3
        good = len(numbers) == 3 and all(map(_number, numbers))
        if not good or not 0 <= numbers[0] <= numbers[1] <= numbers[2]:
            raise ValueError(f"stage {name} is {value!r}; give seconds, or [least, most often, most]")
        least, often, most = map(float, numbers)
        spans[name] = Span(least, often, most, "given")
    return replace(stages, **spans)
