"""The main job as a user runs it: one file, one shared GPU, both front doors."""

from __future__ import annotations

import base64
import io
import json
import socket
from pathlib import Path

import httpx
import psutil
import pytest
from openai import AuthenticationError, NotFoundError, OpenAI
from PIL import Image
from shell import Shell

KEY = {"authorization": "Bearer sk-acme-1"}


def artwork(colour: str = "#c81e1e") -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture
def url(up: Shell) -> str:
    return up.state().gateway_url


@pytest.fixture
def client(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="sk-acme-1", max_retries=0)


def test_both_workloads_share_the_one_gpu_that_there_is(up: Shell) -> None:
    plan = json.loads(up.run("plan", "--json").stdout)
    assert plan["gpus_needed"] == 1
    assert set(up.pids()) == {"mockups", "writer", "gateway", "ingress"}


def test_everything_listens_on_loopback_only(up: Shell) -> None:
    state = up.state()
    assert state.ray is not None
    owner = state.ray.find()
    assert owner is not None
    family = [owner, *owner.children(recursive=True)]
    family += [psutil.Process(pid) for pids in up.pids().values() for pid in pids]
    open_to_others = {
        (process.name(), c.laddr.ip, c.laddr.port)
        for process in family
        for c in process.net_connections(kind="inet")
        if c.status == psutil.CONN_LISTEN and c.laddr.ip not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")
    }
    assert not open_to_others


def test_the_dashboard_wants_the_token(up: Shell) -> None:
    assert httpx.get(f"{up.state().dashboard}/api/serve/applications/", trust_env=False).status_code == 401


def test_a_mockup_comes_back_as_a_picture_with_the_artwork_on_it(url: str) -> None:
    body = {"template": "poster", "artwork": artwork(), "size": 128, "samples": 16}
    reply = httpx.post(f"{url}/v1/mockups", json=body, headers={**KEY, "accept": "image/png"}, timeout=120)
    assert reply.status_code == 200, reply.text
    image = Image.open(io.BytesIO(reply.content)).convert("RGB")
    red, green, blue = image.getpixel((image.width // 2, image.height // 2))  # type: ignore[misc]
    assert red > 1.5 * green
    assert red > 1.5 * blue


def test_a_chat_streams_to_the_openai_client(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model="smollm2-135m",
        messages=[{"role": "user", "content": "Say hello."}],
        max_tokens=12,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text.strip()
    assert chunks[-1].usage is not None
    assert 1 <= chunks[-1].usage.completion_tokens <= 12


def test_a_wrong_key_and_a_wrong_model_are_told_apart(url: str, client: OpenAI) -> None:
    with pytest.raises(AuthenticationError):
        OpenAI(base_url=f"{url}/v1", api_key="nobody", max_retries=0).models.list()
    with pytest.raises(NotFoundError):
        client.chat.completions.create(model="gpt-nothing", messages=[{"role": "user", "content": "x"}])


def test_jobs_of_both_kinds_go_through_pubsub_and_come_back_in_order(up: Shell, tmp_path: Path) -> None:
    lines = []
    for number in range(4):
        render = {"template": "mug", "artwork": artwork(), "size": 64, "samples": 4, "seed": number}
        chat = {"model": "smollm2-135m", "max_tokens": 4, "messages": [{"role": "user", "content": f"{number}?"}]}
        lines.append({"custom_id": f"r{number}", "method": "POST", "url": "/v1/mockups", "body": render})
        lines.append({"custom_id": f"c{number}", "method": "POST", "url": "/v1/chat/completions", "body": chat})
    file = tmp_path / "jobs.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    batch = up.run("submit", str(file)).stdout.split()[0]
    out = tmp_path / "results.jsonl"
    up.run("results", batch, "-o", str(out), "--timeout", "180")
    results = [json.loads(line) for line in out.read_text().splitlines()]
    assert [r["custom_id"] for r in results] == [line["custom_id"] for line in lines]
    assert [r["response"]["status_code"] for r in results] == [200] * 8


def test_editing_one_workload_leaves_the_others_process_alone(up: Shell) -> None:
    before = up.pids()
    edited = json.loads(json.dumps(up.content))
    edited["workloads"]["mockups"]["mockup"]["templates"] = ["mug"]
    up.write(edited)
    up.run("up")
    after = up.pids()
    assert after["writer"] == before["writer"]
    assert after["gateway"] == before["gateway"]
    assert after["mockups"] != before["mockups"]
    up.write(up.content)
    up.run("up")


def test_a_failed_deploy_says_why_and_the_old_version_goes_on_serving(up: Shell, url: str, client: OpenAI) -> None:
    broken = json.loads(json.dumps(up.content))
    broken["workloads"]["writer"]["llm"]["engine"] = {"no_such_engine_argument": 1}
    up.write(broken)
    failed = up.run("up", check=False)
    assert failed.returncode == 1
    assert "writer" in failed.stderr
    assert "no_such_engine_argument" in failed.stderr
    assert "Traceback" not in failed.stderr
    answer = client.chat.completions.create(
        model="smollm2-135m", messages=[{"role": "user", "content": "Still there?"}], max_tokens=4
    )
    assert answer.choices[0].message.content
    up.write(up.content)
    up.run("up")


def test_down_stops_what_up_started_and_nothing_else(up: Shell, url: str) -> None:
    bystander = socket.create_server(("127.0.0.1", 0))
    state = up.state()
    assert state.ray is not None
    owner = state.ray.find()
    assert owner is not None
    family = [owner, *owner.children(recursive=True)]
    up.run("down")
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert state.emulator is None or state.emulator.find() is None
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/healthz", trust_env=False)
    assert "nothing to stop" in up.run("down").stderr
    bystander.close()
