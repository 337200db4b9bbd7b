"""A real vLLM behind Ray Serve and the gateway, used as its users do: with the official OpenAI client.

One engine for the whole module, deployed by the platform's own Serve config: it takes half a minute and 4 GB.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import openai
import psutil
import pytest
import yaml

from cotenant.calls import Call
from cotenant.config import load_platform
from cotenant.errors import DeadlineExceeded, ReplicaDied, UnknownWorkload
from cotenant.gpu.plan import plan
from cotenant.manifests.serve import serve_config

if TYPE_CHECKING:
    from deployments.backend import ServeBackend

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

MODEL, WORKLOAD = "smollm2-135m", "writer"
HELLO = [{"role": "user", "content": "Say hello."}]
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Running:
    """The platform under test: the gateway's URL, and Ray's Serve module."""

    url: str
    serve: Any


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    import ray
    from ray import serve
    from ray.serve._private.api import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    file = tmp_path_factory.mktemp("platform") / "platform.yaml"
    writer = {"llm": {"model": MODEL, "context_tokens": 2048}, "gpu": {"vram_gib": 5}, "concurrency": 8, "queue": 12}
    content = {
        "workloads": {WORKLOAD: writer},
        "gateway": {"port": port},
        "jobs": {"ingresses": 0},
        "environments": {"local": {"pools": {"shared": {"accelerator": "cpu", "vram_gib": 12}}}},
    }
    file.write_text(yaml.safe_dump(content))
    platform = load_platform(file, "local")
    config = serve_config(platform, plan(platform))

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT / 'platform'}:{ROOT}")
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.delenv("COTENANT_API_KEYS", raising=False)
        resources = {"cotenant-pool-shared": 1000}
        ray.init(
            address="local",
            num_cpus=3,
            num_gpus=1,
            resources=resources,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=200 << 20,
        )
        serve.start(proxy_location="Disabled")
        _get_global_client().deploy_apps(ServeDeploySchema.model_validate(config), _blocking=False)
        end = time.monotonic() + 300
        while (states := {name: app.status.value for name, app in serve.status().applications.items()}) != {
            WORKLOAD: "RUNNING",
            "gateway": "RUNNING",
        }:
            assert "DEPLOY_FAILED" not in states.values(), serve.status()
            assert time.monotonic() < end, serve.status()
            time.sleep(0.5)
        yield Running(f"http://127.0.0.1:{port}", serve)
        serve.shutdown()
        ray.shutdown()


@pytest.fixture
async def client(running: Running) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


async def counted(running: Running, names: str) -> int:
    """The sum of the engine's own metrics whose names match."""
    reply = await running.serve.get_app_handle(WORKLOAD).call.remote(Call("/metrics", method="GET"))
    counts = re.findall(rf"^vllm:(?:{names})\{{.*\}} (\S+)$", reply.body.decode(), re.MULTILINE)
    assert counts
    return int(sum(float(count) for count in counts))


async def busy(running: Running) -> int:
    """Requests that the engine works on or has waiting."""
    return await counted(running, "num_requests_running|num_requests_waiting")


async def becomes(running: Running, wanted: int, within_s: float = 10) -> None:
    end = time.monotonic() + within_s
    while (now := await busy(running)) != wanted:
        assert time.monotonic() < end, f"the engine has {now} requests, not {wanted}"
        await asyncio.sleep(0.1)


async def test_a_whole_answer_has_text_usage_and_an_end(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=5, temperature=0)
    assert answer.model == MODEL
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 5


async def test_the_workloads_name_is_a_model_too(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model=WORKLOAD, messages=HELLO, max_tokens=2)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2


async def test_a_streamed_answer_comes_token_by_token_with_its_usage(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model=MODEL,
        messages=HELLO,
        max_tokens=12,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    assert stream.response.headers["content-type"].startswith("text/event-stream")
    chunks = [chunk async for chunk in stream]
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert len(pieces) > 6
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 12


async def test_a_stream_ends_as_openais_do(running: Running) -> None:
    body = {"model": MODEL, "messages": HELLO, "max_tokens": 2, "stream": True}
    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        reply = await http.post(f"{running.url}/v1/chat/completions", json=body)
    events = reply.text.split("\n\n")
    assert all(event.startswith("data: {") for event in events[:-2])
    assert events[-2:] == ["data: [DONE]", ""]


async def test_completions_continue_a_text_and_stop_where_told(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(
        model=MODEL, prompt="1, 2, 3, 4, 5,", stop=["8"], max_tokens=40, temperature=0
    )
    assert answer.choices[0].text.strip().startswith("6, 7")
    assert "8" not in answer.choices[0].text
    assert answer.choices[0].finish_reason == "stop"


async def test_several_choices_and_their_logprobs(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model=MODEL, messages=HELLO, n=2, max_tokens=4, logprobs=True, top_logprobs=3, extra_body={"ignore_eos": True}
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice in answer.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        assert [len(token.top_logprobs) for token in choice.logprobs.content] == [3] * 4


async def test_streams_at_once_keep_their_tokens_apart(client: openai.AsyncOpenAI) -> None:
    async def count_on(start: int) -> str:
        prompt = ", ".join(str(start + i) for i in range(5)) + ","
        stream = await client.completions.create(model=MODEL, prompt=prompt, max_tokens=12, temperature=0, stream=True)
        return "".join([chunk.choices[0].text async for chunk in stream])

    texts = await asyncio.gather(*(count_on(start) for start in range(10, 90, 10)))
    for start, text in zip(range(10, 90, 10), texts, strict=True):
        assert text.strip().startswith(f"{start + 5}, {start + 6}"), (start, text)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        pytest.param({"temperature": -1}, "temperature", id="a value out of range"),
        pytest.param({"max_tokens": 100_000}, "max_tokens", id="more tokens than the context holds"),
        pytest.param({"messages": "hello"}, "messages", id="a field of the wrong type"),
        pytest.param(
            {
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
                "tool_choice": "auto",
            },
            "tool",
            id="tools, which need a parser for the model",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_what_the_engine_refuses_is_an_openai_error(
    client: openai.AsyncOpenAI, body: dict[str, Any], said: str, stream: bool
) -> None:
    request = {"messages": HELLO, "max_tokens": 2, **body}
    with pytest.raises(openai.BadRequestError) as refused:
        await client.post("/chat/completions", cast_to=object, body={"model": MODEL, "stream": stream, **request})
    assert refused.value.status_code == 400
    assert said in refused.value.message
    assert refused.value.response.headers["content-type"].startswith("application/json")


async def test_a_model_that_nobody_serves_is_not_found(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.create(model="smollm", messages=HELLO)


async def test_a_stream_that_its_client_leaves_frees_the_engine(running: Running, client: openai.AsyncOpenAI) -> None:
    await becomes(running, 0)
    stream = await client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=1900, stream=True, extra_body={"ignore_eos": True}
    )
    async for _ in stream:
        break
    assert await busy(running) == 1
    await stream.close()
    await becomes(running, 0)


async def test_a_whole_answer_that_its_client_leaves_frees_the_engine(
    running: Running, client: openai.AsyncOpenAI
) -> None:
    await becomes(running, 0)
    asking = asyncio.create_task(
        client.chat.completions.create(
            model=MODEL, messages=HELLO, max_tokens=1900, n=2, extra_body={"ignore_eos": True}
        )
    )
    await becomes(running, 2)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await becomes(running, 0)


#: A job that takes all eight slots of the engine, in one call.
TOPICS = ["The sea", "A far city", "Bread", "Rain", "A lighthouse", "Ravens", "The moon", "Snow"]
JOB = {"model": WORKLOAD, "prompt": TOPICS, "max_tokens": 60, "temperature": 0, "ignore_eos": True}
BEAM = {"prompt": "Snow", "use_beam_search": True, "n": 2, "max_tokens": 30}
CHAT = {"model": WORKLOAD, "prompt": "A mug", "max_tokens": 20, "temperature": 0, "ignore_eos": True}


def completion(*bodies: dict[str, Any], batch: bool = False) -> Call:
    body = {name: value for each in bodies for name, value in each.items()}
    return Call("/v1/completions", json.dumps(body).encode(), deadline_s=100, batch=batch)


@pytest.fixture
async def backend(running: Running) -> AsyncIterator[ServeBackend]:
    from deployments.backend import ServeBackend

    backend = ServeBackend()
    yield backend
    await backend.close()


@pytest.mark.parametrize(
    ("job", "chat"),
    [
        pytest.param({}, {}, id="as they are"),
        pytest.param({"priority": -1000}, {"priority": 1000}, id="whatever the bodies say of priority"),
        pytest.param(
            {"prompt": "Snow", "use_beam_search": True, "n": 2, "max_tokens": 30},
            {},
            id="with a beam search as the job",
        ),
    ],
)
async def test_an_interactive_answer_passes_a_job_that_holds_all_slots(
    running: Running, backend: ServeBackend, job: dict[str, Any], chat: dict[str, Any]
) -> None:
    await becomes(running, 0)
    finished: list[str] = []
    before = await counted(running, "prompt_tokens_total")

    async def finish(name: str, call: Call) -> None:
        reply = await backend.call(WORKLOAD, call)
        assert reply.status == 200, reply.body
        finished.append(name)

    first = asyncio.create_task(finish("job", completion(JOB, job, batch=True)))
    while await counted(running, "prompt_tokens_total") == before:
        assert not first.done(), await first
    await finish("chat", completion(CHAT, {"max_tokens": 40}, chat))
    await first
    assert finished == ["chat", "job"]


async def test_a_job_makes_no_token_while_an_interactive_answer_is_made_and_then_says_what_it_would_have_said(
    running: Running, backend: ServeBackend
) -> None:
    await becomes(running, 0)
    one = {"prompt": TOPICS[0]}
    alone = await backend.call(WORKLOAD, completion(JOB, one, batch=True))
    made: list[tuple[str, str]] = []
    job_begun = asyncio.Event()

    async def make(name: str, call: Call) -> None:
        reply = await backend.stream(WORKLOAD, call)
        async for chunk in reply.chunks:
            events = [line[6:] for line in chunk.decode().splitlines() if line.startswith("data: {")]
            made.extend((name, json.loads(event)["choices"][0]["text"]) for event in events)
            job_begun.set()

    job = asyncio.create_task(make("job", completion(JOB, one, {"stream": True}, batch=True)))
    await job_begun.wait()
    await make("chat", completion(CHAT, {"stream": True}))
    await job
    names = [name for name, _ in made]
    start, end = names.index("chat"), len(names) - 1 - names[::-1].index("chat")
    assert names[start : end + 1].count("chat") == 20
    # One token may have been on its way when the first one of the chat came.
    assert names[start : end + 1].count("job") <= 1
    assert names[-1] == "job"
    assert "".join(text for name, text in made if name == "job") == alone.json()["choices"][0]["text"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_job_that_is_cancelled_while_it_sits_out_frees_its_slots(
    running: Running, backend: ServeBackend, stream: bool
) -> None:
    await becomes(running, 0)
    call = completion(JOB, {"max_tokens": 1900, "stream": stream}, batch=True)
    job: asyncio.Task[Any] | None = None
    chunks: Any = None
    if stream:
        chunks = (await backend.stream(WORKLOAD, call)).chunks
    else:
        job = asyncio.create_task(backend.call(WORKLOAD, call))
    await becomes(running, 8)
    chat = await backend.stream(WORKLOAD, completion(CHAT, {"max_tokens": 400, "stream": True}))
    reading = chat.chunks.__aiter__()
    await reading.__anext__()
    assert await busy(running) == 9
    if job is not None:
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
    else:
        await chunks.aclose()
    await becomes(running, 1)
    assert await reading.__anext__(), "the chat goes on"
    await chat.chunks.aclose()  # type: ignore[attr-defined]
    await becomes(running, 0)


async def test_a_priority_that_is_none_is_an_error_of_the_client(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="priority"):
        await client.completions.create(model=MODEL, prompt="A mug", max_tokens=1, extra_body={"priority": "high"})


async def test_a_full_queue_turns_away_and_says_when_to_come_back(running: Running) -> None:
    await becomes(running, 0)
    body = {"model": MODEL, "messages": HELLO, "max_tokens": 40, "ignore_eos": True}
    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        url = f"{running.url}/v1/chat/completions"
        replies = await asyncio.gather(*(http.post(url, json=body) for _ in range(40)))
    statuses = [reply.status_code for reply in replies]
    assert sorted(set(statuses)) == [200, 429]
    assert statuses.count(200) >= 12
    refused = next(reply for reply in replies if reply.status_code == 429)
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["type"] == "rate_limit_error"


async def test_a_deadline_cancels_the_work_and_says_so(running: Running) -> None:
    from deployments.backend import ServeBackend

    backend = ServeBackend()
    body = b'{"model": "writer", "prompt": "Once", "max_tokens": 1900, "ignore_eos": true}'
    with pytest.raises(DeadlineExceeded):
        await backend.call(WORKLOAD, Call("/v1/completions", body, deadline_s=1.0))
    await becomes(running, 0)
    reply = await backend.stream(
        WORKLOAD, Call("/v1/completions", body.replace(b"{", b'{"stream": true, ', 1), deadline_s=1.5)
    )
    with pytest.raises(DeadlineExceeded):
        async for _ in reply.chunks:
            pass
    await becomes(running, 0)
    await backend.close()


async def test_the_backend_knows_what_runs(running: Running) -> None:
    from deployments.backend import ServeBackend

    backend = ServeBackend()
    status = await backend.status()
    assert status[WORKLOAD].ready
    assert status[WORKLOAD].replicas == 1
    with pytest.raises(UnknownWorkload):
        await backend.call("nobody", Call("/v1/completions"))


async def test_a_replica_that_dies_ends_its_streams_and_leaves_no_engine_behind(running: Running) -> None:
    """Last, because the next replica takes half a minute to start."""
    from deployments.backend import ServeBackend

    backend = ServeBackend()
    body = b'{"model": "writer", "prompt": "Once", "max_tokens": 1900, "ignore_eos": true, "stream": true}'
    reply = await backend.stream(WORKLOAD, Call("/v1/completions", body, deadline_s=60))
    chunks = reply.chunks.__aiter__()
    assert await chunks.__anext__()
    replica = psutil.Process(replica_pid(running))
    engines = [child for child in replica.children(recursive=True) if child.memory_info().rss > 500 << 20]
    assert engines
    replica.kill()
    with pytest.raises(ReplicaDied):
        while True:
            await chunks.__anext__()
    await backend.close()
    _, left = await asyncio.to_thread(psutil.wait_procs, engines, timeout=30)
    assert not left, "an engine without its replica would keep its memory"


def replica_pid(running: Running) -> int:
    from ray.serve._private.api import _get_global_client

    details = _get_global_client().get_serve_details()
    replicas = details["applications"][WORKLOAD]["deployments"]["Replica"]["replicas"]
    return int(replicas[0]["pid"])
