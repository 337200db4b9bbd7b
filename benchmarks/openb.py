"""GPUs that a real cluster's fractional pods need: one each, first fit, best fit, our plan, and the proven bound.

    python benchmarks/openb.py --trace DIR

DIR holds `openb_pod_list_default.csv` of Alibaba's cluster-trace-gpu-v2023 (Apache-2.0,
github.com/alibaba/clusterdata). A fractional pod asks for less than one GPU (num_gpu 1, gpu_milli under 1000). All of
them are placed at once on GPUs of one kind, by share alone; the trace's CPU, memory, GPU type and times are left out.
What sharing can save there at all is 36 % of the fractional pods' GPUs, and 15 % of all.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections import Counter
from pathlib import Path

from cotenant.config import Platform
from cotenant.gpu.packing import Demand, pack
from cotenant.gpu.plan import Plan, plan

_MILLI = 1_000
_CLOSE = 1.005
_USABLE_GIB = 20.0


def pods(trace: Path) -> tuple[list[int], int]:
    """Thousandths of a GPU that each fractional pod asks for, in the trace's order, and whole GPUs of the others."""
    fractional: list[int] = []
    whole = 0
    with (trace / "openb_pod_list_default.csv").open() as file:
        for row in csv.DictReader(file):
            count, milli = int(row["num_gpu"]), int(row["gpu_milli"])
            if count == 1 and milli < _MILLI:
                fractional.append(milli)
            else:
                whole += count
    return fractional, whole


def first_fit(fractional: list[int]) -> int:
    """GPUs taken if each pod in turn goes to the first GPU with room."""
    free: list[int] = []
    for milli in fractional:
        for gpu, room in enumerate(free):
            if room >= milli:
                free[gpu] = room - milli
                break
        else:
            free.append(_MILLI - milli)
    return len(free)


def best_fit_decreasing(counts: Counter[int]) -> int:
    demands = [Demand(str(milli), milli * 10, milli) for milli in counts]
    gpus, _ = pack(demands, {str(milli): count for milli, count in counts.items()}, _MILLI, None)
    return gpus.in_use


def planned(counts: Counter[int]) -> Plan:
    """The plan of a platform with one workload for each size."""
    workloads = {
        f"milli-{milli}": {
            "mockup": {},
            "gpu": {"vram_gib": _USABLE_GIB * milli / _MILLI},
            "replicas": {"min": count, "max": count},
        }
        for milli, count in counts.items()
    }
    pool = {"accelerator": "cpu", "vram_gib": _USABLE_GIB, "nodes": {"min": 0, "max": 10_000}}
    return plan(Platform.model_validate({"environment": "openb", "workloads": workloads, "pools": {"gpus": pool}}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, required=True, help="folder with openb_pod_list_default.csv")
    fractional, whole = pods(parser.parse_args().trace)
    counts = Counter(fractional)
    first, best = first_fit(fractional), best_fit_decreasing(counts)
    started = time.perf_counter()
    made = planned(counts)
    took_s = time.perf_counter() - started
    ours, bound = made.gpus_needed, made.gpus_lower_bound
    each = len(fractional)
    print(f"{each} fractional pods of {len(counts)} sizes, and {whole} GPUs asked for whole")
    rows = [("one GPU each", each), ("first fit", first), ("best fit decreasing", best), ("the plan", ours)]
    for name, gpus in [*rows, ("no packing takes fewer than", bound)]:
        print(f"  {name:28}{gpus:6,}  {gpus / bound:.4f} of the bound")
    print(f"  planned in {took_s:.2f} s; {'the fewest there can be' if made.is_fewest else 'not proven the fewest'}")
    print(f"  saved: {1 - ours / each:.1%} of the fractional pods' GPUs, {(each - ours) / (each + whole):.1%} of all")
    ok = ours <= _CLOSE * bound and ours <= best
    print(f"  limits: at most {_CLOSE} of the bound and what best fit takes: {'ok' if ok else 'MISSED'}")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
