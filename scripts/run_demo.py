"""The main job, as a user would run it: plan, up, a render, a chat, a picture, twenty jobs, down; with a summary.

Everything goes through the shipped commands and the public HTTP interface. Only the memory figures come from
elsewhere: resident memory of each workload's process tree, found by the replica pids that Serve reports.
"""

from __future__ import annotations

import argparse
import base64
import colorsys
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
from openai import OpenAI
from PIL import Image
from rich.console import Console
from rich.table import Table

from cotenant.cli.machine.serve_api import ServeApi
from cotenant.cli.machine.state import RunState

ROOT = Path(__file__).resolve().parent.parent
ARTWORK = ROOT / "demo" / "artwork.png"
OUT = ROOT / "demo" / "out"
PLATFORM = ROOT / "deployments" / "platform.yaml"
MODEL = "smollm2-135m"
PAINTER = "tiny-inpaint"
CAPTION_SUBJECTS = (
    "a ceramic mug", "a travel poster", "a summer sale", "a new coffee blend",
    "a book club", "a jazz night", "a bakery opening", "a bicycle tour",
)  # fmt: skip

console = Console(highlight=False)


class Demo:
    """Runs the steps and keeps how long each took and what it made."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str]] = []
        self.begun = time.monotonic()

    @contextmanager
    def step(self, title: str) -> Iterator[list[str]]:
        """A titled step; what the body appends is shown in the summary."""
        console.rule(f"[bold]{title}", align="left", style="dim")
        begun = time.monotonic()
        made: list[str] = []
        yield made
        self.rows.append((title, f"{time.monotonic() - begun:.1f} s", ", ".join(made)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", action="store_true", help="leave the platform running")
    keep = parser.parse_args().keep
    OUT.mkdir(parents=True, exist_ok=True)
    demo = Demo()
    with demo.step("plan"):
        cotenant("plan")
    try:
        with demo.step("up") as made:
            cotenant("up")
            made.append("three workloads on one virtual GPU")
        state = RunState.load("cotenant")
        if state is None:
            sys.exit("demo: `cotenant up` left no record of what it started")
        run(demo, state)
        memory = memory_by_workload(state)
    finally:
        if not keep:
            with demo.step("down"):
                cotenant("down")
    summary(demo, memory, time.monotonic() - demo.begun)


def run(demo: Demo, state: RunState) -> None:
    with demo.step("render a mug") as made:
        body = {"template": "mug", "artwork": data_url(ARTWORK.read_bytes()), "size": 1024, "samples": 32, "seed": 7}
        reply = httpx.post(
            f"{state.gateway_url}/v1/mockups", json=body, headers={"accept": "image/png"}, timeout=300
        ).raise_for_status()
        (OUT / "mug.png").write_bytes(reply.content)
        width, height = Image.open(io.BytesIO(reply.content)).size
        made.append(f"demo/out/mug.png, {width}x{height}, {len(reply.content) / 1024:.0f} KiB")
    with demo.step("stream a chat answer") as made:
        made.append(chat(state.gateway_url))
    with demo.step("paint a picture") as made:
        made.append(paint(state.gateway_url))
    with demo.step("20 jobs") as made:
        succeeded = jobs(state)
        made.append(f"{succeeded} of 20 succeeded")
        made.append("through the Pub/Sub emulator" if state.pubsub_emulator_host else "held in memory: no Pub/Sub here")
        if succeeded != 20:
            sys.exit(f"demo: {succeeded} of 20 jobs succeeded; see demo/out/results.jsonl")


def chat(url: str) -> str:
    client = OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("COTENANT_API_KEY", "none"))
    begun = time.monotonic()
    first_s, pieces = 0.0, 0
    stream = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Write a two-sentence post announcing a new hand-made coffee mug."}],
        max_tokens=80,
        temperature=0,
        stream=True,
    )
    for chunk in stream:
        text = chunk.choices[0].delta.content if chunk.choices else None
        if text:
            first_s = first_s or time.monotonic() - begun
            pieces += 1
            console.print(text, end="")
    console.print()
    return f"first token after {first_s:.2f} s, {pieces / (time.monotonic() - begun):.0f} tokens/s"


def paint(url: str) -> str:
    """A picture by the bundled pipeline: its weights are random, so what it paints is noise."""
    client = OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("COTENANT_API_KEY", "none"))
    answer = client.images.generate(
        model=PAINTER,
        prompt="a mug on a table",
        size="64x64",
        extra_body={"seed": 7},  # type: ignore[arg-type]
    )
    (OUT / "noise.png").write_bytes(base64.b64decode(answer.data[0].b64_json or ""))  # type: ignore[index]
    return "demo/out/noise.png, 64x64 (random weights: noise)"


def jobs(state: RunState) -> int:
    """Submit eight renders, eight captions and four pictures; collect their results, count those that succeeded."""
    lines = [*render_jobs(), *caption_jobs(), *picture_jobs()]
    batch_file = OUT / "jobs.jsonl"
    batch_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    submitted = cotenant("submit", str(batch_file), capture=True)
    batch = submitted.split()[0]
    results_file = OUT / "results.jsonl"
    cotenant("results", batch, "-o", str(results_file))
    results = [json.loads(line) for line in results_file.read_text().splitlines()]
    for result in results:
        body = (result.get("response") or {}).get("body") or {}
        if "b64_json" in body:
            (OUT / f"{result['custom_id']}.png").write_bytes(base64.b64decode(body["b64_json"]))
    return sum((r.get("response") or {}).get("status_code") == 200 for r in results)


def render_jobs() -> list[dict[str, object]]:
    artwork = Image.open(ARTWORK).convert("RGB").resize((512, 401))
    made = []
    for number in range(8):
        template = ("mug", "poster")[number % 2]
        body = {"template": template, "artwork": data_url(tinted(artwork, number / 10)), "size": 384, "seed": number}
        made.append({"custom_id": f"render-{number}", "method": "POST", "url": "/v1/mockups", "body": body})
    return made


def caption_jobs() -> list[dict[str, object]]:
    made = []
    for number, subject in enumerate(CAPTION_SUBJECTS):
        message = {"role": "user", "content": f"Write one short, cheerful caption for {subject}."}
        body = {"model": MODEL, "messages": [message], "max_tokens": 32, "temperature": 0}
        made.append({"custom_id": f"caption-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body})
    return made


def picture_jobs() -> list[dict[str, object]]:
    return [
        {
            "custom_id": f"picture-{number}",
            "method": "POST",
            "url": "/v1/images/generations",
            "body": {"model": PAINTER, "prompt": "a travel poster", "size": "64x64", "seed": number},
        }
        for number in range(4)
    ]


def tinted(image: Image.Image, hue: float) -> bytes:
    """`image` blended towards a hue in [0, 1), as PNG bytes: a design of its own for every job."""
    red, green, blue = (int(255 * c) for c in colorsys.hsv_to_rgb(hue, 0.7, 1.0))
    buffer = io.BytesIO()
    Image.blend(image, Image.new("RGB", image.size, (red, green, blue)), 0.35).save(buffer, "PNG")
    return buffer.getvalue()


def data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def memory_by_workload(state: RunState) -> dict[str, float]:
    """Resident GiB of each application's replicas with their children."""
    with ServeApi(state.dashboard, state.token_file) as serve:
        pids = {name: application.pids for name, application in serve.applications().items()}
    found = {}
    for name, roots in pids.items():
        processes = [p for pid in roots for p in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True))]
        found[name] = sum(process.memory_info().rss for process in processes) / 2**30
    return found


def summary(demo: Demo, memory_gib: dict[str, float], total_s: float) -> None:
    plan = json.loads(cotenant("plan", "--json", capture=True))
    steps = Table("step", "took", "made", title="What happened", title_justify="left", box=None)
    for row in demo.rows:
        steps.add_row(*row)
    shares = Table("workload", "GPU share", "memory", title="\nWho held what", title_justify="left", box=None)
    for name, gib in memory_gib.items():
        booked = plan["workloads"].get(name)
        shares.add_row(name, f"{booked['num_gpus']:.4f}" if booked else "none (a front door)", f"{gib:.2f} GiB")
    console.print(steps, shares, f"\n[bold]done in {total_s:.0f} s[/], pictures in demo/out")


def cotenant(*arguments: str, capture: bool = False) -> str:
    """Run the command line of this checkout; its output is shown, or returned."""
    command = [str(Path(sys.executable).with_name("cotenant")), arguments[0], "-f", str(PLATFORM), *arguments[1:]]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE if capture else None, text=True, check=False)
    if done.returncode:
        sys.exit(f"demo: `cotenant {' '.join(arguments)}` ended with {done.returncode}")
    return done.stdout or ""


if __name__ == "__main__":
    main()
