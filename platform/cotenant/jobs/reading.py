"""A file of jobs, read strictly before anything of it is submitted: all problems with their lines, or all jobs."""

from __future__ import annotations

from collections.abc import Iterable

from cotenant.calls import Directory
from cotenant.errors import JobsFileError, Problem
from cotenant.jobs.lines import MAX_LINES, LineProblem, check_line
from cotenant.jobs.model import Job, check_name

#: Problems shown of one file.
MAX_PROBLEMS = 20


def read_jobs(
    lines: Iterable[bytes], file: str, *, tenant: str, batch: str, directory: Directory | None = None
) -> list[Job]:
    """The jobs of a batch file, all of them or none. Empty lines are passed over.

    Args:
        file: its name, for messages.
        directory: what the platform serves; with it, a route, model or template that nobody serves is refused.

    Raises:
        JobsFileError: lines that are no jobs, a custom_id given twice, or no job at all; with line numbers.
        MalformedJob: the tenant or the batch is no name that a message can carry.
    """
    check_name("the tenant", tenant)
    check_name("the batch", batch)
    jobs: list[Job] = []
    problems: list[Problem] = []
    first_line: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        checked = check_line(line, tenant=tenant, batch=batch, directory=directory)
        if isinstance(checked, LineProblem):
            problems.append(Problem(file, number, checked.message))
            if len(problems) == MAX_PROBLEMS:
                break
            continue
        job = checked.job
        first = first_line.setdefault(job.identity.custom_id, number)
        if first != number:
            text = f"custom_id {job.identity.custom_id!r} was given on line {first}; each job of a file needs its own"
            problems.append(Problem(file, number, text))
        jobs.append(job)
    if len(jobs) > MAX_LINES:
        text = f"has {len(jobs):,} jobs, and a batch may have {MAX_LINES:,}; split it"
        problems.append(Problem(file, MAX_LINES + 1, text))
    if not jobs and not problems:
        problems.append(Problem(file, 1, "has no jobs; give one a line: {custom_id, method, url, body}"))
    if problems:
        raise JobsFileError(problems)
    return jobs
