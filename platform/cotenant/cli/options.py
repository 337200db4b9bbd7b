"""What every command shares: which platform file, which of its environments, and its budgets as numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from cotenant.config import DEFAULT_ENVIRONMENT, DEFAULT_FILE, Platform, Workload
from cotenant.gpu.fit import Facts, facts_of
from cotenant.gpu.fit.budgets import budgeted

Command = TypeVar("Command", bound=Callable[..., Any])


def platform_options(command: Command) -> Command:
    """Add `-f/--file` (argument `file`, a Path) and `-e/--env` (argument `environment`) to a command."""
    command = click.option(
        "-e", "--env", "environment", default=DEFAULT_ENVIRONMENT, show_default=True, help="Environment of the file."
    )(command)
    return click.option(
        "-f",
        "--file",
        type=click.Path(path_type=Path),
        default=DEFAULT_FILE,
        show_default=True,
        help="The platform file.",
    )(command)


def with_budgets(platform: Platform) -> tuple[Platform, tuple[str, ...]]:
    """`platform` with every `auto` budget filled in and every other one checked, and notes on what could not be.

    The network is asked only for an `auto` budget of a hub model that is not on this machine.

    Raises:
        PlanError: a budget is too small, or `auto` needs facts that are not to be had.
    """
    done = budgeted(platform, facts_of, _from_the_hub)
    return done.platform, done.warnings


def _from_the_hub(workload: Workload) -> Facts | None:
    from cotenant.gpu.fit.hub import HttpsHub  # noqa: PLC0415 - most plans never ask

    return facts_of(workload, HttpsHub())
