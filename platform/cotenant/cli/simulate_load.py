"""What `cotenant simulate` is given, read: loads from the command line, times of stages from a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from cotenant.errors import TraceError
from cotenant.sim.stages import SPOT, Spot, Stages, overridden, spot_of
from cotenant.sim.traces import Load


def load_of(text: str, names: Sequence[str]) -> Load:
    """A `--load`. Raises TraceError."""
    name, _, rest = text.partition("=")
    rest, patient, within = rest.partition("/")
    rest, _, burst = rest.partition("x")
    rate, at, seconds = rest.partition("@")
    try:
        load = Load(names.index(name), float(rate), float(seconds), float(burst or 1), float(within or 0))
    except ValueError:
        load = None
    good = load is not None and load.per_s > 0 and load.service_s > 0 and 1 <= load.burst <= 10
    if load is None or not good or not at or bool(patient) != (load.within_s > 0):
        raise TraceError(
            f"--load {text} is not NAME=RATE@SECONDS[xB][/W], such as {names[0]}=0.5@2 (a call every 2 s that takes "
            f"2 s) or {names[0]}=0.5@2x8/3600; NAME is one of {', '.join(names)}, B is 1 to 10, W the seconds that "
            "a call may wait"
        )
    return load


def stages_of(file: Path | None, losses_per_h: float | None) -> tuple[Stages, Spot]:
    """The times of stages in a file, over the defaults, and how spot nodes come and go. Raises TraceError.

    Args:
        losses_per_h: stands in for what the file says of spot nodes.
    """
    given: Mapping[str, Any] = {}
    try:
        if file is not None:
            given = yaml.safe_load(file.read_text())
        if not isinstance(given, Mapping):
            raise ValueError("is no mapping of stages to seconds")
        spot = spot_of(given.get("spot", {}), SPOT)
        stages = overridden({name: value for name, value in given.items() if name != "spot"})
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise TraceError(f"{file}: {error}") from error
    return stages, spot if losses_per_h is None else replace(spot, losses_per_h=losses_per_h)
