"""The hub over HTTP, against a small server that answers as the hub does: lists, ranges, redirects, refusals."""

from __future__ import annotations

import http.server
import json
import re
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from cotenant.gpu.fit import FactsMissing
from cotenant.gpu.fit.hub import HttpsHub
from cotenant.gpu.fit.llm import LlmFacts

pytestmark = pytest.mark.integration
#: `scripts/test` runs it beside another.
WAITS_MORE_THAN_IT_COMPUTES = True

CONFIG = {
    "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 10, "num_attention_heads": 2,
    "num_key_value_heads": 2,
}  # fmt: skip
HEADER = json.dumps({"w": {"dtype": "BF16", "shape": [64, 64], "data_offsets": [0, 8192]}}).encode()
FILES = {
    "config.json": json.dumps(CONFIG).encode(),
    "model.safetensors": struct.pack("<Q", len(HEADER)) + HEADER + bytes(8192),
}


class _Handler(http.server.BaseHTTPRequestHandler):
    seen: list[tuple[str, str | None, str | None]]
    ranges = True

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers["Range"], self.headers["Authorization"]))
        if self.path.startswith("/api/models/org/gone"):
            return self._send(404, b"{}")
        if self.path.startswith("/api/models/org/gated"):
            return self._send(401, b"{}")
        if self.path.startswith("/api/models/org/broken"):
            return self._send(200, b"<html>")
        if self.path.startswith("/api/models/org/busy"):
            return self._send(503, b"")
        if self.path.startswith("/api/models/"):
            return self._send(200, json.dumps(listing()).encode())
        if self.path == "/org/model/resolve/main/model.safetensors":
            # As the hub does with large files: elsewhere.
            self.send_response(302)
            self.send_header("Location", "/elsewhere/model.safetensors")
            self.end_headers()
            return None
        data = FILES[self.path.rsplit("/", 1)[1]]
        span = re.match(r"bytes=(\d+)-(\d+)", self.headers["Range"] or "")
        if span is None or not self.ranges:
            return self._send(200, data)
        return self._send(206, data[int(span[1]) : int(span[2]) + 1])

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def listing() -> list[dict[str, Any]]:
    files = [{"type": "file", "path": name, "size": len(data)} for name, data in FILES.items()]
    return [{"type": "directory", "path": "sub", "size": 0}, *files]


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    _Handler.seen, _Handler.ranges = [], True
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_model_is_known_from_its_config_and_the_heads_of_its_weights(endpoint: str) -> None:
    facts = LlmFacts.read(HttpsHub(endpoint, token="secret").folder("org/model"))
    assert facts.decoder.hidden == 8
    assert facts.tensors is not None
    assert facts.tensors.values == 64 * 64
    ranges = [span for path, span, _ in _Handler.seen if "safetensors" in path]
    assert ranges[::2] == ["bytes=0-7", f"bytes=8-{len(HEADER) + 7}"], "no further than the header"


def test_the_token_goes_to_the_hub_and_not_where_the_hub_sends_on(endpoint: str) -> None:
    LlmFacts.read(HttpsHub(endpoint, token="secret").folder("org/model"))
    assert {token for path, _, token in _Handler.seen if not path.startswith("/elsewhere")} == {"Bearer secret"}
    assert {token for path, _, token in _Handler.seen if path.startswith("/elsewhere")} == {None}


def test_a_server_without_ranges_is_not_read_whole(endpoint: str) -> None:
    _Handler.ranges = False
    with pytest.raises(FactsMissing, match=r"sends org/model/resolve/main/model\.safetensors only whole"):
        LlmFacts.read(HttpsHub(endpoint).folder("org/model"))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("org/gone", "the hub has no org/gone"),
        ("org/gated", "accept the model's terms and set HF_TOKEN"),
        ("org/broken", "list of files of org/broken can't be read"),
        ("org/busy", "answered 503 for org/busy; try again"),
    ],
)
def test_what_the_hub_refuses_is_told_with_a_next_step(endpoint: str, model: str, words: str) -> None:
    with pytest.raises(FactsMissing, match=re.escape(words)):
        HttpsHub(endpoint).folder(model).files()


def test_no_network_says_what_else_there_is() -> None:
    with pytest.raises(FactsMissing, match=r"can't be reached .*; name a local folder, or give vram_gib as a number"):
        HttpsHub("http://127.0.0.1:9", timeout_s=2).folder("org/model").files()


def test_what_is_no_id_and_what_is_forbidden_are_never_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FactsMissing, match="neither a folder of this machine nor a hub id"):
        HttpsHub("http://127.0.0.1:9").folder("a model/with spaces")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FactsMissing, match="HF_HUB_OFFLINE forbids to ask the hub"):
        HttpsHub("http://127.0.0.1:9").folder("org/model")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "ftp://hub")
    with pytest.raises(FactsMissing, match="needs to be an http"):
        HttpsHub().folder("org/model").files()


def test_past_a_files_end_there_is_nothing_to_fetch(endpoint: str) -> None:
    assert HttpsHub(endpoint).folder("org/model").read("config.json", 1 << 20, 8) == b""
