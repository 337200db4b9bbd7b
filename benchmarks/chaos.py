"""Jobs on a platform in which everything is killed, paused and taken away: none lost, none done twice, none stuck.

    python benchmarks/chaos.py [--jobs 10000] [--faults 200] [--minutes 50] [--seed 1] [--json FILE]
    python benchmarks/chaos.py --slice                 the few minutes of it that run in CI
    python benchmarks/chaos.py --twin 5000 [--seed 1]  courses on the in-memory twin, in virtual time

Real Ray and Serve, the real Pub/Sub emulator, a folder as the store, two ingresses. Two workloads only sleep for 5 to
100 ms, some jobs of theirs longer than the message lease; about 3 % of the jobs are real renders. While jobs come in by
messages, files and by themselves, SIGKILL hits ingresses, replicas and Serve's controller, the emulator is paused (it
keeps its messages in memory, so to restart it would prove nothing), the store and the results topic go away,
applications are redeployed, and messages are published again. The seed decides who asks for what and what is broken
when; how it interleaves is the machine's.

Exit code 1 where something does not hold; the folder with everything is left then. Same seed, same course.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import random
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console

from cotenant.jobs.queue.emulator import find_emulator
from tests.acceptance.chaos.faults import WEIGHTS
from tests.acceptance.chaos.run import Course, play, show
from tests.contracts import chaos_plans
from tests.contracts.virtual_time import run as run_in_virtual_time

SLICE = {"jobs": 700, "faults": 16, "over_s": 100.0, "settle_s": 150.0, "max_attempts": 6}
#: Skipped: no emulator on this machine.
SKIPPED = 5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=50.0, help="in which jobs are asked for and things break")
    parser.add_argument("--settle", type=float, default=900.0, metavar="S", help="seconds until all must be over then")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    parser.add_argument("--slice", action="store_true", help=f"the short run: {SLICE}")
    parser.add_argument("--twin", type=int, metavar="N", help="play N courses on the in-memory twin instead")
    parser.add_argument("--steps", type=int, default=30, help="steps of a course on the twin")
    parser.add_argument("--only", choices=list(WEIGHTS), metavar="KIND", help="one kind of fault, evenly over the time")
    parser.add_argument("--keep", action="store_true", help="leave the folder and Ray's logs")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    console = Console(highlight=False, width=160)
    if arguments.twin:
        return twin(arguments.seed, arguments.twin, arguments.steps, console)
    command = find_emulator()
    if isinstance(command, str):
        console.print(f"skipped: {command}")
        return SKIPPED
    course = Course(
        arguments.seed,
        arguments.jobs,
        arguments.faults,
        over_s=arguments.minutes * 60,
        settle_s=arguments.settle,
        only=arguments.only,
    )
    if course.only is not None:  # what fails for ever is given up sooner, so that a short run ends
        course = dataclasses.replace(course, max_attempts=SLICE["max_attempts"])
    if arguments.slice:
        course = dataclasses.replace(course, **SLICE)
    report = play(course, command, console, keep=arguments.keep)
    show(report, console)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report.plain(), indent=1, default=str))
    return 1 if report.verdict.wrongs else 0


def twin(seed: int, courses: int, steps: int, console: Console) -> int:
    """Courses with the seeds from `seed` on; those that fail are named, and the first is shown."""
    logging.disable(logging.CRITICAL)
    began, failed = time.monotonic(), []
    totals: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    for one in range(seed, seed + courses):
        if one % 250 == 0 and one > seed:
            console.print(f"[dim]{one - seed} courses, {time.monotonic() - began:.0f} s, failed: {failed or 'none'}[/]")
        try:
            tally = run_in_virtual_time(chaos_plans.play(one, steps), collect=False)
        except Exception as error:
            failed.append(one)
            console.print(f"[red]seed {one}: {type(error).__name__}:[/] {str(error)[:500]}", markup=True)
            continue
        faults += tally.faults
        totals += Counter({k: v for k, v in dataclasses.asdict(tally).items() if isinstance(v, int | float)})
    console.print(f"{courses} courses from seed {seed} in {time.monotonic() - began:.0f} s, failed: {failed or 'none'}")
    console.print({name: round(total) for name, total in totals.items()})
    console.print(dict(faults))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
