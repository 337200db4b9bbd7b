"""`cotenant scaling`: how many replicas each workload has and is to have, and why."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from cotenant.cli.machine.cluster import AGENT_NAMESPACE, SCALER, joined
from cotenant.errors import EnvironmentFault

_ANSWER_S = 10.0


@click.command()
@click.option("--address", default="auto", show_default=True, help="The Ray cluster; auto is the one of this machine.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the latest changes.")
@click.option("--follow", is_flag=True, help="Print it again whenever a number of replicas has changed.")
def scaling(address: str, as_json: bool, follow: bool) -> None:
    """Show how many replicas each workload has and is to have, and why."""
    with joined(address) as ray:
        try:
            scaler = ray.get_actor(SCALER, namespace=AGENT_NAMESPACE)
        except ValueError:
            raise EnvironmentFault(
                f"nothing scales on the Ray at {address}: no workload there has replicas with another max than min"
            ) from None
        shown: dict[str, Any] | None = None
        try:
            while True:
                decisions = _ask(ray, scaler.look)
                if shown is None or _counts(decisions) != _counts(shown):
                    _print(decisions, _ask(ray, scaler.changes) if as_json else None)
                    shown = decisions
                if not follow:
                    return
                time.sleep(0.5)
        except KeyboardInterrupt:
            return


def _ask(ray: Any, method: Any) -> Any:
    try:
        return ray.get(method.remote(), timeout=_ANSWER_S)
    except ray.exceptions.RayError as error:
        raise EnvironmentFault(f"the scaler does not answer: {str(error).strip().splitlines()[-1]}") from None


def _counts(decisions: dict[str, Any]) -> dict[str, tuple[int, int]]:
    return {name: (one["replicas"], one["serving"]) for name, one in decisions.items()}


def _print(decisions: dict[str, Any], changes: list[dict[str, Any]] | None) -> None:
    if changes is not None:
        click.echo(json.dumps({"workloads": decisions, "changes": changes}))
        return
    from cotenant.cli.scaling_view import show  # noqa: PLC0415 - `--json` and errors do without rich

    show(decisions)
