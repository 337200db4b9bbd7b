"""How a rollout is shown, on a terminal and in a log."""

from __future__ import annotations

import io
import sys
from dataclasses import replace

import pytest
from rich.console import Console

from cotenant.cli import deploying
from cotenant.cli import deploying_view as view
from cotenant.cluster.pods import groups
from cotenant.cluster.rayservice import read
from cotenant.cluster.rollout import Progress
from cotenant.cluster.verdict import Verdict
from cotenant.errors import EnvironmentFault
from tests.contracts.cluster import ray_service
from tests.contracts.ray_statuses import ACTIVE, PENDING, applications, pod, status

pytestmark = pytest.mark.unit

RUNNING = applications(writer="RUNNING")
DEPLOYING = applications(writer=("DEPLOYING", "first\nloading the model"))


def progress(elapsed_s: float = 0.0) -> Progress:
    service = ray_service("shop")
    service["metadata"]["generation"] = 2
    service["status"] = status(2, active=RUNNING, pending=DEPLOYING)
    full = "0/2 nodes are available: 2 Insufficient nvidia.com/gpu."
    pods = [
        pod("head", group="headgroup", cluster=PENDING, ready=True),
        pod("w", cluster=PENDING, unschedulable=full),
        pod("old", cluster=ACTIVE, ready=True),
    ]
    seen = groups(pods, [], [PENDING, ACTIVE])
    waiting = Verdict("waiting", ("writer is DEPLOYING: loading the model",))
    return Progress(read(service), seen, waiting, elapsed_s, ("the API server does not answer",))


def test_a_terminal_shows_conditions_applications_and_pods() -> None:
    console = Console(file=io.StringIO(), width=160, record=True)
    console.print(view.picture(progress(7)))
    text = console.export_text()
    for words in (
        "shop waiting  7 s",
        f"{PENDING} comes up beside {ACTIVE}",
        "UpgradeInProgress True",
        "writer       deploying  loading the model",
        "head     1/1    shop-raycluster-b",
        "2 without enough nvidia.com/gpu free",
        "the API server does not answer",
    ):
        assert words in text


def test_a_log_gets_a_line_when_something_changed() -> None:
    out = io.StringIO()
    healthy = replace(progress(9), verdict=Verdict("healthy"), notes=())
    last = view.follow([progress(0), progress(3), progress(6), healthy], Console(file=out, width=300))
    assert last is healthy
    first, second = out.getvalue().splitlines()
    assert first == (
        "    0 s  waiting: writer is DEPLOYING: loading the model "
        "(pods ready: head 1/1, shared 0/1); the API server does not answer"
    )
    assert second == "    9 s  healthy (pods ready: head 1/1, shared 0/1)"


def test_a_live_terminal_ends_with_the_last_look() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    assert view.follow([progress(0), progress(3)], console).elapsed_s == 3


def test_without_the_kubernetes_package_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "cotenant.cluster.kube", raising=False)
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    with pytest.raises(EnvironmentFault, match=r"pip install 'cotenant\[kubernetes\]'"):
        deploying.open_cluster(None)
