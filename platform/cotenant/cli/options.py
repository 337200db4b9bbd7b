"""Options that every command shares: which platform file, which of its environments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from cotenant.config import DEFAULT_ENVIRONMENT, DEFAULT_FILE

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
