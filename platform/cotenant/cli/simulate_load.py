"""What `cotenant simulate` is given, read: loads from the command line, times of stages from a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from cotenant.errors import TraceError
from cotenant.sim.stages import DEFAULTS, Stages, overridden
from cotenant.sim.traces import Load


def load_of(text: str, names: Sequence[str]) -> Load:
    """A `--load`. Raises TraceError."""
    name, _, rest = text.partition("=")
    rest, _, burst = rest.partition("x")
    rate, at, seconds = rest.partition("@")
    try:
        load = Load(names.index(name), float(rate), float(seconds), float(burst or 1))
    except ValueError:
        load = None
    if load is None or not at or not (load.per_s > 0 and load.service_s > 0 and 1 <= load.burst <= 10):
        raise TraceError(
            f"--load {text} is not NAME=RATE@SECONDS[xB], such as {names[0]}=0.5@2 (a call every 2 s that takes 2 s) "
            f"or {names[0]}=0.5@2x8; NAME is one of {', '.join(names)}, B is 1 to 10"
        )
    return load


def stages_of(file: Path | None) -> Stages:
    """The times of stages in a file, over the defaults. Raises TraceError."""
    if file is None:
        return DEFAULTS
    try:
        given = yaml.safe_load(file.read_text())
        if not isinstance(given, Mapping):
            raise ValueError("is no mapping of stages to seconds")
        return overridden(given)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise TraceError(f"{file}: {error}") from error
