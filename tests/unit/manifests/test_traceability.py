"""Every step of the talk is a field that is there and a test that guards it: the table in docs/gke.md holds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cotenant.config import load_platform
from cotenant.cost.monthly import monthly_cost
from cotenant.gpu.plan import plan

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]
_ROW = re.compile(r"^\| ([^|]+) \| `([^`]+)` \| `([^`]+)` \| `([^`]+)` \|$", re.MULTILINE)


def rows() -> list[tuple[str, str, str, str]]:
    page = (ROOT / "docs/gke.md").read_text()
    section = page.split("## Where each step of the talk is")[1].split("\n## ")[0]
    return _ROW.findall(section)


def looked_up(document: Any, path: str) -> Any:
    """The value at a dotted path; text on the way is YAML of its own (a Serve config)."""
    for step in path.split("."):
        if isinstance(document, str):
            document = yaml.safe_load(document)
        document = document[int(step)] if isinstance(document, list) else document[step]
    return document


def test_the_table_has_the_five_steps_and_the_three_that_were_to_come() -> None:
    steps = [step for step, *_ in rows()]
    assert [step[0] for step in steps[:5]] == ["1", "2", "3", "4", "5"]
    assert sum(step.startswith("next: ") for step in steps) == 3


@pytest.mark.parametrize(("step", "file", "field", "test"), rows())
def test_a_step_is_a_field_that_is_there_and_a_test_that_guards_it(step: str, file: str, field: str, test: str) -> None:
    text = (ROOT / file).read_text()
    if file.endswith((".yaml", ".json")):
        document = json.loads(text) if file.endswith(".json") else _object_with(text)
        assert looked_up(document, field) not in (None, "", 0, [], {}, False), step
    else:
        assert field in text, step
    written = [
        each for each in (ROOT / "tests").rglob("test_*.py") if each.name == test or f"def {test}(" in each.read_text()
    ]
    assert written, f"{step}: no test {test}"


def _object_with(text: str) -> Any:
    """The one object of a file."""
    (document,) = yaml.safe_load_all(text)
    return document


@pytest.mark.parametrize("environment", ["dev", "staging", "prod"])
def test_the_page_tells_what_an_environment_costs(environment: str) -> None:
    platform = load_platform(ROOT / "deployments/platform.yaml", environment)
    cost = monthly_cost(platform, plan(platform))
    (row,) = re.findall(rf"^\| {environment} \|.*$", (ROOT / "docs/gke.md").read_text(), re.MULTILINE)
    assert row.endswith(f"| {cost.usd_per_h_at_min:.2f} USD | {cost.usd_per_h_at_max:.2f} USD |")
