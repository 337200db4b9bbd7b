#!/usr/bin/env python3
"""What a neighbour feels when an offender is stopped: its step times before and meanwhile, over several offences.

Aim: its 99th percentile while the offender is stopped is at most 1.10 times the one before.

    python benchmarks/gpu/neighbour.py --offences 5
"""

from __future__ import annotations

import argparse

from gpukit import node
from gpukit.child import ChildFailed
from gpukit.machine import pick
from gpukit.offence import Offence, offend
from gpukit.records import Record, median, percentile, record

_SOURCE = "benchmarks/gpu/neighbour.py"
AIM = 1.10


def measure(offences: int) -> Record:
    seen: list[Offence] = [offend(before_s=3.0, after_s=1.0) for _ in range(offences)]
    rows = []
    ratios = {}
    for percent in (50, 99):
        before = [percentile(one.before_ms, percent) for one in seen]
        during = [percentile(one.while_ms, percent) for one in seen]
        ratios[percent] = median([b / a for a, b in zip(before, during, strict=True)])
        aim = f" (aim at most {AIM:.2f})" if percent == 99 else ""
        rows.append(
            (f"step p{percent} ms", f"{median(before):.3f}", f"{median(during):.3f}", f"{ratios[percent]:.2f}{aim}")
        )
    took = [one.took_s for one in seen]
    alone = sum(one.killed and one.stopped == ["offender"] and not one.neighbour_failed for one in seen)
    rows.append(("offence until the offender's end, s", "-", f"{median(took):.2f}, at most {max(took):.2f}", "-"))
    rows.append(("offenders killed, and they alone", "-", f"{alone} of {offences}", "-"))
    notes = (
        f"{offences} offences, medians over them; budget {seen[0].budget_mib} MiB, gone past at once by half; the "
        f"agent looks every second, measured by {seen[0].measured_by}. Neighbour: {seen[0].work}. Meanwhile: from the "
        "offender's asking for too much until half a second after its end.",
    )
    columns = ("the neighbour", "before", "while the offender is stopped", "ratio")
    data = {"ratio_p99": ratios[99], "took_s": took, "killed_alone": alone}
    return Record("A neighbour while an offender is stopped", _SOURCE, columns, rows, notes, data)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--offences", type=int, default=None, help="default 5; on a CPU 2")
    arguments = parser.parse_args()
    why = node.missing()
    if why:
        print(f"SKIPPED neighbour: {why}")
        return 0
    try:
        record(measure(arguments.offences or pick(5, 2)))
    except (ChildFailed, RuntimeError) as failure:
        print(f"FAILED neighbour: {failure}")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
