"""Groups of commands that are imported one by one, when one of them runs.

`--help` reads each command's first docstring line from its source: importing Ray, torch or Google's client for a
list of commands would take seconds.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from cotenant.errors import CotenantError


class LazyGroup(click.Group):
    """Commands by name, imported on use; errors raised on purpose become clean lines.

    `lazy` names the function of each command, as `module:function`, in the order in which a user meets them.
    """

    def __init__(self, *arguments: Any, lazy: Mapping[str, str], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._lazy:
            return None
        module, _, function = self._lazy[cmd_name].partition(":")
        command = getattr(import_module(module), function)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _summary(*where.split(":"))) for name, where in self._lazy.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CotenantError as error:
            for line in str(error).splitlines():
                click.secho(line, fg="red", err=True)
            ctx.exit(error.exit_code)


def _summary(module: str, function: str) -> str:
    """First line of the command's docstring, read from its source."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        return ""
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            return (ast.get_docstring(node) or "").partition("\n")[0]
    return ""
