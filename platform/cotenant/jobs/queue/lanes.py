"""Which topics and subscriptions jobs go through. Pure.

A *lane* is a topic with the ingresses' one subscription to it, named by the suffix that both have:

    jobs              the main lane: anybody publishes any job here
    jobs.<workload>   a workload's own lane, so that its backlog is pulled exactly as its slots come free
    jobs-clerk        work about jobs: batches to see through, webhooks to deliver

Who knows the workload publishes to its lane. A job that comes by the main lane and finds its workload full is moved
to that workload's lane, so a backlog of one workload never stands in the way of another.
"""

from __future__ import annotations

from typing import Protocol

from cotenant.config import Jobs
from cotenant.jobs.queue.source import JobSource

MAIN = ""
CLERK = "-clerk"


def lane_of(workload: str) -> str:
    """The lane of a workload. No workload's name holds a dot, so lanes never meet."""
    return f".{workload}"


def workload_of(lane: str) -> str | None:
    """The workload whose lane this is; None for the main lane and the clerk's."""
    return lane[1:] if lane.startswith(".") else None


def topic_of(jobs: Jobs, lane: str) -> str:
    """Short name of a lane's topic."""
    return f"{jobs.topic}{lane}"


def lane_jobs(jobs: Jobs, lane: str) -> Jobs:
    """`jobs` with a lane's topic and subscription. Only the main lane is filtered: its topic may be others'."""
    names = {"topic": topic_of(jobs, lane), "subscription": f"{jobs.subscription}{lane}"}
    return jobs.model_copy(update=names if lane == MAIN else {**names, "filter": None})


class Lanes(Protocol):
    """Opens lanes: each a `JobSource` of its own, not set up yet."""

    def open(self, lane: str) -> JobSource: ...
