"""What the gateway's own code costs: its app over an in-memory backend, against a bare Starlette app.

Both serve on the same uvicorn settings in a process of their own; a raw-socket client drives them in turns. No
engine and no Ray: only the work per request and per streamed chunk. Streams come in steps, as engine steps do:
`--streams` requests get one chunk each every `--every-ms`.

    python benchmarks/gateway_app.py [--rounds 3] [--streams 32] [--chunks 40] [--every-ms 200]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import time
from collections.abc import AsyncIterator
from multiprocessing.connection import Connection
from typing import Any

CHUNK = b'data: {"id":"chat-1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":" mug"}}]}\n\n'
PATH = "/v1/chat/completions"


async def _chunks(count: int, every_s: float) -> AsyncIterator[bytes]:
    for step in range(count):
        if step:
            await asyncio.sleep(every_s)
        yield CHUNK


def _starlette(count: int, every_s: float) -> Any:
    """The bare yardstick: parses the body, knows no keys, limits, metrics or logs."""
    import orjson
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response, StreamingResponse
    from starlette.routing import Route

    async def chat(request: Request) -> Response:
        body = orjson.loads(await request.body())
        if body.get("stream"):
            return StreamingResponse(_chunks(count, every_s), media_type="text/event-stream")
        return Response(CHUNK, media_type="application/json")

    return Starlette(routes=[Route(PATH, chat, methods=["POST"])])


def _cotenant(count: int, every_s: float) -> Any:
    from cotenant.calls import Call, Directory, InMemoryBackend, Reply, Served, StreamedReply
    from cotenant.config.model import Gateway
    from cotenant.gateway.app import create_app
    from cotenant.gateway.keys import load_keys
    from cotenant.telemetry.logs import configure_logs
    from cotenant.telemetry.metrics import GatewayMetrics

    def writer(call: Call) -> Reply | StreamedReply:
        if b'"stream"' in call.body:
            return StreamedReply(200, "text/event-stream", _chunks(count, every_s))
        return Reply(200, CHUNK)

    configure_logs(open("/dev/null", "w"))  # noqa: SIM115, PTH123 - lines are made and written, to nowhere
    directory = Directory((Served("writer", "llm", models=("tiny",)),))
    backend = InMemoryBackend({"writer": writer}, slots=256)
    config = Gateway()
    keys = load_keys(config, {"COTENANT_API_KEYS": "bench:key"})
    return create_app(lambda: directory, backend, config, keys, GatewayMetrics())


APPS = {"starlette": _starlette, "cotenant": _cotenant}


def _serve(which: str, count: int, every_s: float, pipe: Connection) -> None:
    import uvloop

    from cotenant.gateway.server import HttpServer

    async def forever() -> None:
        server = HttpServer(APPS[which](count, every_s), host="127.0.0.1", port=0)
        await server.start()
        pipe.send(server.port)

        def tell_cpu() -> None:
            pipe.recv()
            pipe.send(time.process_time())

        asyncio.get_running_loop().add_reader(pipe.fileno(), tell_cpu)
        await asyncio.Event().wait()

    uvloop.run(forever())


def _request(stream: bool) -> bytes:
    content: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "x" * 200}]}
    body = json.dumps({**content, "stream": True} if stream else content).encode()
    head = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer key\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


async def _streamed(port: int, count: int) -> float:
    """Read one stream to its end; returns the seconds to its first chunk."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began = time.perf_counter()
    writer.write(_request(stream=True))
    await reader.readuntil(CHUNK)
    first_s = time.perf_counter() - began
    for _ in range(count - 1):
        await reader.readuntil(CHUNK)
    await reader.readuntil(b"0\r\n\r\n")
    writer.close()
    return first_s


async def _whole(port: int, seconds: float) -> int:
    """Ask for whole replies one after another; returns how many came."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request, answered, ends = _request(stream=False), 0, time.perf_counter() + seconds
    while time.perf_counter() < ends:
        writer.write(request)
        await reader.readuntil(CHUNK)
        answered += 1
    writer.close()
    return answered


async def _measure(port: int, pipe: Connection, arguments: argparse.Namespace) -> dict[str, float]:
    def cpu_s() -> float:
        """The server's own count: the kernel's table is too coarse for a second of streaming."""
        pipe.send("cpu")
        return float(pipe.recv())

    before = cpu_s()
    first = await asyncio.gather(*(_streamed(port, arguments.chunks) for _ in range(arguments.streams)))
    streaming_s = cpu_s() - before
    before, began = cpu_s(), time.perf_counter()
    answered = sum(await asyncio.gather(*(_whole(port, arguments.seconds) for _ in range(16))))
    return {
        "us_per_chunk": streaming_s / (arguments.streams * arguments.chunks) * 1e6,
        "first_chunk_ms": statistics.median(first) * 1e3,
        "rps": answered / (time.perf_counter() - began),
        "us_per_request": (cpu_s() - before) / answered * 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--chunks", type=int, default=40)
    parser.add_argument("--every-ms", type=float, default=200)
    parser.add_argument("--seconds", type=float, default=4)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    servers: dict[str, tuple[Any, Connection, int]] = {}
    for which in APPS:
        mine, theirs = context.Pipe()
        server = context.Process(target=_serve, args=(which, arguments.chunks, arguments.every_ms / 1e3, theirs))
        server.start()
        servers[which] = (server, mine, mine.recv())
    rounds: dict[str, list[dict[str, float]]] = {which: [] for which in APPS}
    try:
        for turn in range(arguments.rounds + 1):
            for which, (_, pipe, port) in servers.items():
                found = asyncio.run(_measure(port, pipe, arguments))
                if turn:  # the first only warms up
                    rounds[which].append(found)
    finally:
        for server, *_ in servers.values():
            server.terminate()
    figures = {w: {k: statistics.median(r[k] for r in found) for k in found[0]} for w, found in rounds.items()}
    print(f"{'':16}{'starlette':>12}{'cotenant':>12}{'ratio':>8}")
    for name, yardstick in figures["starlette"].items():
        ours = figures["cotenant"][name]
        print(f"{name:16}{yardstick:12.1f}{ours:12.1f}{ours / yardstick:8.2f}")


if __name__ == "__main__":
    main()
