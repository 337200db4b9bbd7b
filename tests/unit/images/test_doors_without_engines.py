"""The doors' image has no engine, so what runs there must do without: both doors, the head's actors, every builder.

A child process is forbidden every package that is installed here and not in the doors' lock.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]

#: What is imported in processes on the head and the front pool: by Serve's controller (policy, routing), by Serve's
#: build task (a builder for each kind of workload), by our actors there.
IN_THE_DOORS = (
    "agent", "gateway", "headroom", "image", "ingress", "llm",
    "mockup", "policy", "replica", "routing", "scaler", "spare",
)  # fmt: skip

CHILD = """
import importlib, json, pkgutil, sys

forbidden, modules = json.load(sys.stdin)

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in forbidden:
            raise ModuleNotFoundError(f"No module named {name!r} in the doors", name=name)

sys.meta_path.insert(0, Missing())
for module in modules:
    importlib.import_module(module)
import cotenant.cli
for command in pkgutil.walk_packages(cotenant.cli.__path__, "cotenant.cli."):
    importlib.import_module(command.name)

from cotenant.config import load_platform
from cotenant.gpu.plan import plan
from cotenant.manifests.serve import serve_config

platform = load_platform("deployments/platform.yaml", "prod")
built = []
for application in serve_config(platform, plan(platform))["applications"]:
    module, _, name = application["import_path"].partition(":")
    builder = getattr(importlib.import_module(module), name)
    (arguments,) = [a for k, a in builder.__annotations__.items() if k != "return"]
    builder(arguments.model_validate(application["args"]))
    built.append(application["name"])
print(json.dumps(built))
"""


def not_in_the_doors() -> list[str]:
    """Top-level modules installed here of packages that the doors' lock lacks."""
    text = "".join(lock.read_text() for lock in (ROOT / "requirements/images/doors").glob("*.lock"))
    held = set(re.findall(r"^([a-z0-9][a-z0-9._-]*)==", text, re.MULTILINE)) | {"cotenant"}
    here = packages_distributions()
    normal = {top: {re.sub(r"[-_.]+", "-", each).lower() for each in owners} for top, owners in here.items()}
    return sorted(top for top, owners in normal.items() if not owners & held)


def test_doors_head_and_builders_of_every_workload_start_without_any_engine() -> None:
    forbidden = not_in_the_doors()
    assert {"mitsuba", "drjit", "torch", "vllm", "diffusers", "trimesh", "transformers", "pandas"} <= set(forbidden)
    modules = [f"deployments.{name}" for name in IN_THE_DOORS]
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=json.dumps([forbidden, modules]),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}/platform:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    built = json.loads(done.stdout.splitlines()[-1])
    assert {"gateway", "ingress"} <= set(built) and len(built) > 2
