"""Figures on their way into the report: printed as a table, and appended to a file where the suite collects them."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

OUT_ENV = "COTENANT_GPU_SUITE_OUT"
FILE = "records.jsonl"


@dataclass(frozen=True)
class Record:
    """One section of the report: a table, what was run for it, and what must be known to read it."""

    title: str
    source: str
    """The test or command that it comes from."""
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    data: dict[str, Any] = field(default_factory=dict)
    """The figures themselves, for scripts."""

    def markdown(self, label: str) -> str:
        """The section, ready to be pasted."""
        lines = [f"## {self.title}", f"{label[:1].upper()}{label[1:]}. `{self.source}`", ""]
        lines += ["| " + " | ".join(self.columns) + " |", "|" + "---|" * len(self.columns)]
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        return "\n".join([*lines, *(["", *self.notes] if self.notes else [])]) + "\n"

    def text(self) -> str:
        """The table for a terminal."""
        widths = [max(len(row[i]) for row in (self.columns, *self.rows)) for i in range(len(self.columns))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                 for row in (self.columns, *self.rows)]  # fmt: skip
        return "\n".join([f"\n{self.title}", *lines, *self.notes])


def record(made: Record) -> None:
    """Print it, and keep it if the suite collects."""
    print(made.text(), flush=True)
    folder = os.environ.get(OUT_ENV)
    if folder:
        with Path(folder, FILE).open("a") as file:
            file.write(json.dumps(asdict(made)) + "\n")


def read(folder: Path) -> list[Record]:
    """What was kept in `folder`."""
    file = folder / FILE
    if not file.exists():
        return []
    return [Record(**json.loads(line)) for line in file.read_text().splitlines()]


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest rank; raises ValueError if there are no values."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)
