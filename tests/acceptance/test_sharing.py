"""Workloads that share one GPU: who takes too much dies alone, who sleeps wakes up, whoever is killed comes back."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil
import pytest
import yaml
from openai import APIStatusError, OpenAI
from PIL import Image
from shell import Shell

from cotenant.cli.machine.serve_api import ServeApi

KEY = {"authorization": "Bearer sk-acme-1"}
PROMPT = [{"role": "user", "content": "Count from one to fifty in words."}]


@pytest.fixture(scope="module")
def workloads() -> dict[str, Any]:
    """Three of which two can sleep, and one of those two has to."""
    return {
        "writer": {"llm": {"model": "smollm2-135m", "context_tokens": 1024}, "gpu": {"vram_gib": 5}},
        "mugs": {
            "mockup": {"templates": ["mug"]},
            "gpu": {"vram_gib": 1.5, "asleep_gib": 0.6},
            "residency": "sleep",
        },
        "painter": {
            "image": {"model": "tiny-inpaint", "steps": 4},
            "gpu": {"vram_gib": 1.5, "asleep_gib": 0.9},
            "residency": "sleep",
        },
    }


@pytest.fixture(scope="module")
def gpu_gib() -> float:
    """5 for the writer, both floors, and room for one to wake: 8 would hold all three."""
    return 7.5


@pytest.fixture(scope="module")
def url(up: Shell) -> str:
    return up.state().gateway_url


@pytest.fixture(scope="module")
def client(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="sk-acme-1", max_retries=0, timeout=180)


def artwork() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "#1e6ec8").save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def render(url: str, size: int = 64, samples: int = 4) -> httpx.Response:
    body = {"template": "mug", "artwork": artwork(), "size": size, "samples": samples, "seed": 1}
    return httpx.post(f"{url}/v1/mockups", json=body, headers={**KEY, "accept": "image/png"}, timeout=180)


def paint(client: OpenAI) -> bytes:
    answer = client.images.generate(
        model="tiny-inpaint",
        prompt="a mug",
        size="64x64",  # type: ignore[arg-type]
        extra_body={"seed": 3},
    )
    assert answer.data is not None
    return base64.b64decode(answer.data[0].b64_json or "")


def tokens(client: OpenAI, count: int) -> list[str]:
    stream = client.chat.completions.create(
        model="smollm2-135m", messages=PROMPT, max_tokens=count, temperature=0, stream=True,  # type: ignore[arg-type]
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    return [c.choices[0].delta.content or "" for c in stream if c.choices]


def eventually(ask: Callable[[], Any], within_s: float = 60) -> Any:
    """What `ask` returns once it is true."""
    end = time.monotonic() + within_s
    while True:
        answer = ask()
        if answer:
            return answer
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.2)


@pytest.fixture
def lying_budget(up: Shell) -> Iterator[None]:
    """`mugs` deployed with a budget that its larger renders pass from their first second on, as no plan would allow.

    Their peak, at their end, is higher by far and can be over between two looks of the agent.
    """
    config = yaml.safe_load(up.run("compile").stdout)
    (mugs,) = (application for application in config["applications"] if application["name"] == "mugs")
    mugs["args"]["terms"] |= {"vram_gib": 0.3, "floor_gib": 0.28}
    state = up.state()
    with ServeApi(state.dashboard, state.token_file) as serve:
        serve.deploy(config)
        eventually(lambda: serve.applications()["mugs"].ready)
    yield
    up.run("up")


def test_what_does_not_fit_at_once_is_served_by_turns(up: Shell, url: str, client: OpenAI) -> None:
    first = paint(client), render(url).content
    for _ in range(3):
        assert (paint(client), render(url).content) == first
    tiers = {"writer": "resident", "mugs": "resident", "painter": "asleep"}
    eventually(lambda: {name: row["tier"] for name, row in up.replicas().items()} == tiers, within_s=10)
    held = up.replicas()
    assert {name: row["residency"] for name, row in held.items()} == {
        "writer": "always", "mugs": "sleep", "painter": "sleep",
    }  # fmt: skip
    for row in held.values():
        assert row["held_mib"] <= row["budget_mib"]


def test_many_at_once_are_all_served(url: str, client: OpenAI) -> None:
    with ThreadPoolExecutor(8) as pool:
        pictures = [pool.submit(paint, client) for _ in range(6)]
        renders = [pool.submit(render, url) for _ in range(6)]
        chats = [pool.submit(tokens, client, 8) for _ in range(2)]
        assert len({picture.result() for picture in pictures}) == 1
        assert {answer.result().status_code for answer in renders} == {200}
        assert all(len(chat.result()) >= 8 for chat in chats)


def test_who_goes_past_its_budget_is_stopped_alone(up: Shell, url: str, client: OpenAI, lying_budget: None) -> None:
    alone = tokens(client, 300)
    before = up.pids()
    with ThreadPoolExecutor(2) as pool:
        chat = pool.submit(tokens, client, 300)
        offender = pool.submit(render, url, 2048, 64)
        answer = offender.result()
        together = chat.result()
    assert answer.status_code == 507, answer.text
    error = answer.json()["error"]
    assert error["code"] == "budget_exceeded"
    assert "past its budget" in error["message"]
    assert together == alone
    assert render(url).status_code == 200
    after = up.pids()
    assert after["writer"] == before["writer"]
    assert after["painter"] == before["painter"]
    assert after["mugs"] != before["mugs"]


def test_a_dead_agent_comes_back_and_knows_what_is_lent(up: Shell, url: str, client: OpenAI) -> None:
    before = up.replicas()
    (agent,) = (p for p in psutil.process_iter(["cmdline"]) if "ray::GpuAgent" in " ".join(p.info["cmdline"] or ()))
    with ThreadPoolExecutor(2) as pool:
        chat = pool.submit(tokens, client, 120)
        agent.send_signal(signal.SIGKILL)
        assert render(url).status_code == 200
        assert len(chat.result()) >= 100
    paint(client)
    after = eventually(up.replicas)
    assert {row["pid"] for row in after.values()} == {row["pid"] for row in before.values()}
    assert after["writer"]["lease_mib"] == before["writer"]["lease_mib"]


@pytest.mark.parametrize("workload", ["mugs", "painter"])
def test_a_sleeper_killed_while_it_wakes_comes_back_and_leaves_nothing(
    up: Shell, url: str, client: OpenAI, workload: str
) -> None:
    other = paint if workload == "mugs" else lambda _: render(url)
    other(client)  # puts the one under test to sleep
    (pid,) = up.pids()[workload]
    killer = threading.Timer(0.1, os.kill, (pid, signal.SIGKILL))
    killer.start()
    try:
        answered = render(url).status_code if workload == "mugs" else len(paint(client))
    except APIStatusError as error:
        answered = error.status_code
    killer.join()
    assert answered
    eventually(lambda: render(url).status_code == 200)
    assert eventually(lambda: paint(client))
    rows = up.replicas()
    assert set(rows) == {"writer", "mugs", "painter"}
    assert rows[workload]["pid"] != pid


def test_a_killed_llm_comes_back_and_leaves_no_process_behind(up: Shell, url: str, client: OpenAI) -> None:
    (pid,) = up.pids()["writer"]
    family = psutil.Process(pid).children(recursive=True)
    assert family
    os.kill(pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive
    assert render(url).status_code == 200
    eventually(lambda: up.replicas().get("writer", {}).get("tier") == "resident", within_s=150)
    assert tokens(client, 8)


def test_jobs_wake_a_sleeper_too(up: Shell, url: str) -> None:
    render(url)
    lines = [
        {"custom_id": f"p{n}", "method": "POST", "url": "/v1/images/generations",
         "body": {"model": "tiny-inpaint", "prompt": "a mug", "size": "64x64", "seed": n}}
        for n in range(4)
    ]  # fmt: skip
    file = up.folder / "pictures.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    batch = up.run("submit", str(file)).stdout.split()[0]
    out = up.folder / "results.jsonl"
    up.run("results", batch, "-o", str(out), "--timeout", "120")
    results = [json.loads(line) for line in out.read_text().splitlines()]
    assert [r["response"]["status_code"] for r in results] == [200] * 4


def gpu_counts(up: Shell) -> dict[str, int]:
    """How often each workload was lent its budget so far."""
    (agent,) = json.loads(up.command("top", "--once", "--json").stdout)["agents"]
    return {tally["workload"]: tally["wakes"] for tally in agent["tallies"]}


def test_memory_stays_flat_over_sleeps_and_wakes(up: Shell, url: str, client: OpenAI) -> None:
    def swap(times: int) -> dict[str, float]:
        for _ in range(times):
            paint(client)
            render(url)
        rows = up.replicas()
        return {name: rows[name]["held_mib"] for name in ("mugs", "painter")}

    settled = swap(5)
    before = gpu_counts(up)
    later = swap(20)
    after = gpu_counts(up)
    for name in ("mugs", "painter"):
        assert after[name] - before[name] >= 19, "they slept and woke by turns"
    for name, mib in later.items():
        assert mib <= settled[name] * 1.15 + 40, (settled, later)


def test_top_shows_the_whole_cluster_too_and_the_metrics_tell_the_same(up: Shell) -> None:
    address = up.state().ray_address
    assert address is not None
    (agent,) = json.loads(up.command("top", "--address", address, "--json", timeout_s=90).stdout)["agents"]
    assert {row["workload"] for row in agent["gpus"][0]["replicas"]} == {"writer", "mugs", "painter"}
    nobody = up.command("top", "--address", "127.0.0.1:1", check=False, timeout_s=60)
    assert (nobody.returncode, nobody.stdout) == (1, "")
    assert "nothing answers at 127.0.0.1:1" in nobody.stderr
    metrics_url = up.state().metrics_url
    assert metrics_url is not None
    lines = eventually(
        lambda: [
            line for line in httpx.get(metrics_url, trust_env=False).text.splitlines()
            if line.startswith("ray_cotenant_gpu_memory_budget_mib{")
        ]
    )  # fmt: skip
    assert {line.split('workload="')[1].split('"')[0] for line in lines} == {"writer", "mugs", "painter"}
