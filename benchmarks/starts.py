#!/usr/bin/env python3
"""Cold starts through Ray Serve before and after, side by side in one run.

    python benchmarks/starts.py --before REV --rounds 3

`--before` names a revision of this repository: it is checked out beside this one, and both are run in turn, each in
processes, a Ray and a home of its own, with the same interpreter and packages. A start is measured from the wish
(the deploy) to the end of the first answer, with the workload alone on the machine. Every round has a new Ray and in it
so many starts; the first of a Ray also starts the node's GPU agent, as on a new node.

  new    nothing is cached: a machine, or a container, on which the platform never ran
  again  what the platform keeps across starts is there

Bytecode is there on both sides (a start that is not counted makes it), and so is the converted model of the LLM. Limit:
with --aim, the ratio after / before of the medians; it ends with 1 where that is missed. Of the revision that can tell,
what each start consisted of is printed too.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WORKLOADS: dict[str, dict[str, Any]] = {
    "mockup": {"mockup": {"templates": ["mug", "poster"]}, "gpu": {"vram_gib": 2}},
    "image": {"image": {"model": "tiny-inpaint"}, "gpu": {"vram_gib": 2}},
    "llm": {"llm": {"model": "smollm2-135m", "context_tokens": 2048}, "gpu": {"vram_gib": 5}, "concurrency": 8},
}


def call_of(kind: str) -> Any:
    """A small first call."""
    from cotenant.calls import Call

    if kind == "mockup":
        from PIL import Image

        out = io.BytesIO()
        Image.linear_gradient("L").save(out, "PNG")
        art = base64.b64encode(out.getvalue()).decode()
        body = {"template": "mug", "artwork": art, "size": 64, "samples": 4, "seed": 1}
        return Call("/v1/mockups", json.dumps(body).encode(), accept="image/*")
    if kind == "image":
        body = {"model": "tiny-inpaint", "prompt": "a mug", "size": "64x64", "seed": 3}
        return Call("/v1/images/generations", json.dumps(body).encode(), accept="image/png")
    body = {"model": "smollm2-135m", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    return Call("/v1/chat/completions", json.dumps(body).encode())


def child(kind: str, starts: int, out: Path) -> None:
    """Runs with one side's code: a Ray, and so many starts in it."""
    import ray
    import yaml
    from ray import serve
    from ray.serve._private.api import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    from cotenant.config import load_platform
    from cotenant.gpu.plan import plan
    from cotenant.manifests.serve import serve_config

    with contextlib.suppress(ImportError):
        from cotenant.cli.machine.ray_node import preloading

        os.environ.update(preloading(os.environ))
    file = out.with_suffix(".yaml")
    content = {
        "workloads": {kind: WORKLOADS[kind]},
        "jobs": {"ingresses": 0},
        "environments": {"local": {"pools": {"shared": {"accelerator": "cpu", "vram_gib": 12}}}},
    }
    file.write_text(yaml.safe_dump(content))
    platform = load_platform(file, "local")
    config = serve_config(platform, plan(platform))
    config["applications"] = [one for one in config["applications"] if one["name"] == kind]
    ray.init(
        address="local",
        num_cpus=3,
        num_gpus=1,
        resources={"cotenant-pool-shared": 1000},
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=200 << 20,
    )
    serve.start(proxy_location="Disabled")
    time.sleep(3.0)  # Ray's own spare processes are up
    found: list[dict[str, float]] = []
    call = call_of(kind)
    for _ in range(starts):
        began = time.monotonic()
        _get_global_client().deploy_apps(ServeDeploySchema.model_validate(config), _blocking=False)
        while (status := serve.status().applications.get(kind)) is None or status.status != "RUNNING":
            if status is not None and status.status == "DEPLOY_FAILED":
                sys.exit(str(status))
            time.sleep(0.02)
        ready = time.monotonic()
        reply = serve.get_app_handle(kind).call.remote(call).result()
        assert reply.status == 200, reply
        found.append({"ready_s": ready - began, "answered_s": time.monotonic() - began})
        time.sleep(1.5)
        serve.delete(kind)
        time.sleep(1.0)
    told: list[Any] = []
    try:
        from cotenant.agent.look import snapshots
        from cotenant.cli.starts import _plain

        told = [_plain(start) for snapshot in snapshots() for start in snapshot.starts]
    except ImportError:
        pass
    out.write_text(json.dumps({"starts": found, "told": told}))
    serve.shutdown()
    ray.shutdown()


class Side:
    """One revision's tree and home."""

    def __init__(self, name: str, tree: Path, folder: Path) -> None:
        self.name, self.tree, self.home = name, tree, folder / name
        self.forget()

    def forget(self) -> None:
        """Drop all that starts have left behind, but the converted model."""
        models = self.home / "cotenant" / "models"
        kept = self.home.with_suffix(".models")
        if models.exists():
            models.rename(kept)
        shutil.rmtree(self.home, ignore_errors=True)
        models.parent.mkdir(parents=True)
        if kept.exists():
            kept.rename(models)

    def run(self, kind: str, starts: int) -> dict[str, Any]:
        out = self.home / "found.json"
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment |= {
            "HOME": str(self.home),
            "COTENANT_HOME": str(self.home / "cotenant"),
            "COTENANT_AGENT_DIR": str(self.home / "agents"),
            "PYTHONPATH": f"{self.tree / 'platform'}:{self.tree}",
            "XDG_CACHE_HOME": str(self.home / "cache"),
        }
        command = [sys.executable, str(Path(__file__).resolve()), "--child", kind, "--starts", str(starts)]
        done = subprocess.run(
            [*command, "--json", str(out)], env=environment, cwd=self.tree, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"{self.name} failed:\n{done.stderr[-3000:]}")
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def measure(kind: str, sides: list[Side], rounds: int, starts: int) -> dict[str, Any]:
    seconds: dict[str, dict[str, list[float]]] = {side.name: {"new": [], "again": []} for side in sides}
    told: list[Any] = []
    for side in sides:
        side.run(kind, 1)
    for number in range(rounds):
        for side in sides if number % 2 == 0 else sides[::-1]:
            side.forget()
            seconds[side.name]["new"].append(side.run(kind, 1)["starts"][0]["answered_s"])
            found = side.run(kind, starts)
            seconds[side.name]["again"] += [one["answered_s"] for one in found["starts"]]
            told += found["told"]
    return {"seconds": seconds, "told": told}


def show(kind: str, found: dict[str, Any], names: list[str]) -> dict[str, float]:
    """Returns the ratios."""
    ratios = {}
    print(f"\n{kind}: wish to first answer, s, median (least to most)")
    for state in ("new", "again"):
        cells = []
        for name in names:
            values = found["seconds"][name][state]
            cells.append(f"{name} {statistics.median(values):6.2f} ({min(values):.2f} to {max(values):.2f})")
        if len(names) == 2:
            before, after = (statistics.median(found["seconds"][name][state]) for name in names)
            ratios[state] = after / before
            cells.append(f"ratio {after / before:.2f}")
        print(f"  {state:6}", "  ".join(cells))
    stages: dict[str, list[float]] = {}
    for start in found["told"]:
        if start["kind"] == "cold":
            for stage, value in start["seconds"].items():
                stages.setdefault(stage, []).append(value)
    if stages:
        print("  again, by stage: " + ", ".join(f"{name} {statistics.median(v):.2f}" for name, v in stages.items()))
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", help="revision to compare with; without it only this tree is measured")
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=["mockup", "llm"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--starts", type=int, default=2, help="starts in each Ray")
    parser.add_argument("--aim", type=float, help="largest ratio after / before, again")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.starts, arguments.json)
        return
    print(f"{socket.gethostname()}, {os.cpu_count()} cores, Python {sys.version.split()[0]}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sides = [Side("after", ROOT, folder)]
        if arguments.before:
            tree = folder / "tree"
            subprocess.run(
                ["git", "-C", str(ROOT), "worktree", "add", "-q", "--detach", str(tree), arguments.before], check=True
            )
            sides.insert(0, Side("before", tree, folder))
        try:
            results = {kind: measure(kind, sides, arguments.rounds, arguments.starts) for kind in arguments.workloads}
        finally:
            if arguments.before:
                subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(tree)], check=False)
        ratios = {kind: show(kind, found, [side.name for side in sides]) for kind, found in results.items()}
    if arguments.json:
        arguments.json.write_text(json.dumps(results))
    if arguments.aim is not None and any(each.get("again", 0.0) > arguments.aim for each in ratios.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
