"""The command line: one file a command, each imported only when it is the one that runs.

`cotenant --help` and `cotenant plan` answer at once and need neither Ray nor torch installed. A `CotenantError`
ends as one red line a problem on stderr and the error's own exit code, never as a traceback.
"""

from __future__ import annotations

import ast
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from cotenant import __version__
from cotenant.errors import CotenantError

#: Commands in the order a user meets them, and the module whose attribute of that name each one is.
COMMANDS = {
    "plan": "cotenant.cli.plan",
    "fit": "cotenant.cli.fit",
    "compile": "cotenant.cli.compile",
    "schema": "cotenant.cli.schema",
    "up": "cotenant.cli.up",
    "down": "cotenant.cli.down",
    "top": "cotenant.cli.top",
    "submit": "cotenant.cli.submit",
    "results": "cotenant.cli.results",
}


class LazyGroup(click.Group):
    """Commands by name, imported on use; errors raised on purpose become clean lines."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        command = getattr(import_module(module), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _summary(name, module)) for name, module in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CotenantError as error:
            for line in str(error).splitlines():
                click.secho(line, fg="red", err=True)
            ctx.exit(error.exit_code)


def _summary(name: str, module: str) -> str:
    """First line of the command's docstring, read from its source: importing it may cost seconds."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        return ""
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return (ast.get_docstring(node) or "").partition("\n")[0]
    return ""


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cotenant")
def main() -> None:
    """3D-mockup renderers, diffusion models and LLMs that share GPUs, from one platform file."""
