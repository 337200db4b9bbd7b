"""The command line: one file a command, each imported only when it is the one that runs.

`cotenant --help` and `cotenant plan` answer at once and need neither Ray nor torch installed. A `CotenantError`
ends as one red line a problem on stderr and the error's own exit code, never as a traceback.
"""

from __future__ import annotations

import click

from cotenant import __version__
from cotenant.cli.lazy import LazyGroup

#: Commands in the order a user meets them, each as the module and function that it is.
COMMANDS = {
    "plan": "cotenant.cli.plan:plan",
    "fit": "cotenant.cli.fit:fit",
    "simulate": "cotenant.cli.simulate:simulate_command",
    "compile": "cotenant.cli.compile:compile",
    "manifests": "cotenant.cli.manifests:manifests",
    "schema": "cotenant.cli.schema:schema",
    "up": "cotenant.cli.up:up",
    "down": "cotenant.cli.down:down",
    "ingress": "cotenant.cli.ingress:ingress",
    "deploy": "cotenant.cli.deploy:deploy",
    "status": "cotenant.cli.status:status",
    "rollback": "cotenant.cli.rollback:rollback",
    "top": "cotenant.cli.top:top",
    "scaling": "cotenant.cli.scaling:scaling",
    "starts": "cotenant.cli.starts:starts",
    "submit": "cotenant.cli.submit:submit",
    "results": "cotenant.cli.results:results",
    "record": "cotenant.cli.record:record",
    "jobs": "cotenant.cli.jobs:jobs",
    "dead": "cotenant.cli.dead:dead",
}


@click.group(cls=LazyGroup, lazy=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cotenant")
def main() -> None:
    """3D-mockup renderers, diffusion models and LLMs that share GPUs, from one platform file."""
