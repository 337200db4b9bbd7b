"""How a change to a cluster is shown: what would change, then how it comes up."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cotenant.cluster.bounds import Shift
from cotenant.cluster.history import Revision
from cotenant.cluster.rayservice import last_words
from cotenant.cluster.rollout import Action, Progress, Proposal

VERBS: Mapping[Action, str] = {
    "create": "[green]created[/]",
    "change": "[yellow]changed[/]",
    "same": "unchanged",
    "delete": "[red]deleted[/]",
}
_COLOURS = {"RUNNING": "green", "HEALTHY": "green", "DEPLOY_FAILED": "red", "UNHEALTHY": "red", "NOT_STARTED": "dim"}
_STANDINGS = {"healthy": "green", "failed": "red", "waiting": "yellow", "applied": "yellow"}


def console(*, stderr: bool = False) -> Console:
    """A console that breaks no line of a log: without a terminal it is wide, unless COLUMNS says how wide."""
    made = Console(stderr=stderr, highlight=False)
    if made.is_terminal or "COLUMNS" in os.environ:
        return made
    return Console(stderr=stderr, highlight=False, width=200, soft_wrap=stderr)


def show_proposal(proposal: Proposal, console: Console) -> None:
    """The differences, then what is created, changed and deleted, by name."""
    for step in proposal.steps:
        if step.action == "change":
            for line in step.diff.splitlines():
                console.print(Text(line, _line_colour(line)))
    for action, colour, word in (("create", "green", "+"), ("change", "yellow", "~"), ("delete", "red", "-")):
        for step in proposal.steps:
            if step.action == action:
                where = f" in {step.ref.namespace}" if step.ref.namespace else ""
                console.print(Text(f"{word} {step.ref}", colour).append(where, "dim"))
    for shift in proposal.bounds:
        console.print(Text(f"~ {shift}", "yellow"))
    show_notes(proposal.notes, console)
    same = sum(step.action == "same" for step in proposal.steps)
    if proposal.size:
        console.print(f"{proposal.size} changes, {same} unchanged")
    elif proposal.notes:
        console.print(f"nothing to apply, {same} unchanged")
    else:
        console.print(f"nothing to change: all {same} objects are as they should be")


def show_notes(notes: Iterable[str], console: Console) -> None:
    for note in notes:
        console.print(Text("note ", "yellow").append(note, "default"))


def show_bounds(shifts: Iterable[Shift], console: Console) -> None:
    """Bounds that were changed."""
    for shift in shifts:
        console.print(Text("changed ", "yellow").append(str(shift), "default"))


def _line_colour(line: str) -> str:
    if line.startswith(("---", "+++")):
        return "bold"
    return {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")


def follow(looks: Iterable[Progress], console: Console) -> Progress:
    """Show each look, live on a terminal and by changed lines elsewhere; the last one."""
    last: Progress | None = None
    if console.is_terminal:
        with Live(console=console, refresh_per_second=4, transient=True) as live:
            for last in looks:
                live.update(picture(last))
    else:
        told = ""
        for last in looks:
            now = summary(last)
            if now != told:
                told = now
                console.print(Text(f"{last.elapsed_s:5.0f} s  {now}"), soft_wrap=True)
    assert last is not None
    return last


def summary(progress: Progress) -> str:
    """One line: what is waited for, and how many pods of the Ray cluster that is to come up are ready."""
    coming = [group for group in progress.groups if group.cluster == progress.service.coming]
    groups = ", ".join(f"{group.name} {group.ready}/{group.pods}" for group in coming)
    reasons = "; ".join(reason.splitlines()[0] for reason in progress.verdict.reasons)
    told = f"{progress.verdict.standing}" + (f": {reasons}" if reasons else "")
    return told + (f" (pods ready: {groups})" if groups else "") + "".join(f"; {note}" for note in progress.notes)


def picture(progress: Progress) -> RenderableType:
    """Conditions, applications and pods as they stand."""
    service = progress.service
    head = Text(f"{service.name} ", "bold")
    head.append(progress.verdict.standing, _STANDINGS[progress.verdict.standing])
    head.append(f"  {progress.elapsed_s:.0f} s", "dim")
    if service.upgrading:
        head.append(f"  {service.pending or 'a new Ray cluster'} comes up beside {service.active or 'none'}", "cyan")
    parts: list[RenderableType] = [head, conditions(progress), applications(progress)]
    if progress.groups:
        parts.append(pods(progress))
    parts += [Text(f"  {reason}", "yellow") for reason in progress.verdict.reasons]
    parts += [Text(f"  {note}", "dim") for note in progress.notes]
    return Group(*parts)


def conditions(progress: Progress) -> RenderableType:
    told = Text("  ")
    for each in progress.service.conditions.values():
        told.append(f"{each.type} ", "dim").append(each.status, "green" if each.true else "default")
        told.append(f" ({each.reason})  " if each.reason else "  ", "dim")
    return told


def applications(progress: Progress) -> Table:
    table = _table("application", "status", "")
    service = progress.service
    for name in sorted({*service.expected, *service.applications}):
        application = service.application(name)
        table.add_row(
            name,
            Text(application.status.lower(), _COLOURS.get(application.status, "yellow")),
            Text(last_words(application.message), "dim"),
        )
    return table


def pods(progress: Progress) -> Table:
    table = _table("pods of", "ready", "Ray cluster", "")
    for group in progress.groups:
        colour = "green" if group.ready == group.pods else "yellow"
        why = "; ".join(map(str, group.troubles))
        table.add_row(group.name, Text(f"{group.ready}/{group.pods}", colour), group.cluster, Text(why, "dim"))
    return table


def history(revisions: Iterable[Revision]) -> Table:
    """Newest first."""
    table = _table("revision", "state", "at", "by", "")
    for each in sorted(revisions, key=lambda each: -each.number):
        why = each.reason.splitlines()[0] if each.reason else ""
        note = f"back to {each.rollback_of}" if each.rollback_of is not None else why
        table.add_row(str(each.number), Text(each.state, _STANDINGS[each.state]), each.at, each.by, Text(note, "dim"))
    return table


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table
