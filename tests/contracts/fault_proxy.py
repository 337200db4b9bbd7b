"""A proxy between our client and an API server that does to some requests what networks and servers do.

Each fault is done so many times to requests that match it, then they go through. Watches go through line by line.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

#: refuse: answer `code` instead. reset: end the connection without an answer. reset late: pass the request on, then do
#: so. cut: end a watch after `lines` lines. truncate: end it in the midst of the line after them. expire: tell a 410
#: within the watch after them.
What = Literal["refuse", "reset", "reset late", "cut", "truncate", "expire"]


@dataclass
class Fault:
    what: What
    method: str = "GET"
    containing: str = ""
    code: int = 503
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    lines: int = 0
    times: int = 1


@dataclass
class Proxy:
    url: str
    faults: list[Fault] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    """What came, as `PATCH /api/…?…`."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fault_for(self, method: str, path: str) -> Fault | None:
        watches = "watch=true" in path
        with self.lock:
            self.seen.append(f"{method} {path}")
            for fault in self.faults:
                of_watches = fault.what in ("cut", "truncate", "expire")
                if fault.times and fault.method == method and fault.containing in path and of_watches <= watches:
                    fault.times -= 1
                    return fault
        return None

    def count(self, method: str, containing: str) -> int:
        return sum(each.startswith(f"{method} ") and containing in each for each in self.seen)


@contextmanager
def proxying(upstream: str, *, trust: Path | None = None) -> Iterator[Proxy]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    proxy = Proxy(f"http://127.0.0.1:{server.server_address[1]}")
    context = ssl.create_default_context(cafile=str(trust)) if trust else None
    told = {"proxy": proxy, "upstream": upstream, "context": context}
    server.RequestHandlerClass = type("Handler", (_Handler,), told)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy
    upstream: str
    context: ssl.SSLContext | None

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.proxy.fault_for(self.command, self.path)
        if fault is not None and fault.what == "reset":
            return self._end()
        if fault is not None and fault.what == "refuse":
            return self._send(fault.code, fault.headers, fault.body)
        with suppress(OSError, http.client.HTTPException):
            self._pass_on(body, fault)
        return None

    do_POST = do_PATCH = do_DELETE = do_GET

    def log_message(self, *_: Any) -> None:
        pass

    def _pass_on(self, body: bytes, fault: Fault | None) -> None:
        url = urlsplit(self.upstream)
        assert url.hostname is not None
        connection: http.client.HTTPConnection
        if self.context is not None:
            connection = http.client.HTTPSConnection(url.hostname, url.port, context=self.context, timeout=60)
        else:
            connection = http.client.HTTPConnection(url.hostname, url.port, timeout=60)
        headers = {key: value for key, value in self.headers.items() if key.lower() not in ("host", "connection")}
        try:
            connection.request(self.command, self.path, body or None, headers)
            answer = connection.getresponse()
            if fault is not None and fault.what == "reset late":
                answer.read()
                return self._end()
            if "watch=true" in self.path and answer.status == 200:
                return self._stream(answer, fault)
            return self._send(answer.status, {"Content-Type": "application/json"}, answer.read())
        finally:
            connection.close()

    def _stream(self, answer: http.client.HTTPResponse, fault: Fault | None) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        passed = 0
        while True:
            if fault is not None and passed >= fault.lines:
                if fault.what == "expire":
                    status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
                    self._chunk(json.dumps({"type": "ERROR", "object": status}).encode() + b"\n")
                    self.wfile.write(b"0\r\n\r\n")
                    return None
                if fault.what == "cut":
                    return self._end()
            line = answer.readline()
            if not line:
                self.wfile.write(b"0\r\n\r\n")
                return None
            if fault is not None and fault.what == "truncate" and passed >= fault.lines:
                self._chunk(line[: len(line) // 2])
                return self._end()
            self._chunk(line)
            passed += 1

    def _chunk(self, line: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
        self.wfile.flush()

    def _send(self, code: int, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _end(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
