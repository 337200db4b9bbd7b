"""A server that tells of a machine's preemption as Compute Engine's metadata server does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

PATH = "/computeMetadata/v1/instance/preempted"


class MetadataServer:
    """Says FALSE until `preempt`; who waits for a change is answered then."""

    def __init__(self) -> None:
        self.value = "FALSE"
        self.host = ""
        self.asked: list[str] = []
        self.told: list[str] = []
        self.failing = 0
        """So many requests are answered with 503."""
        self.google = True
        self._etag = 1
        self._changed = threading.Condition()

    def preempt(self, value: str = "TRUE") -> None:
        with self._changed:
            self.value, self._etag = value, self._etag + 1
            self._changed.notify_all()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        where = urlsplit(request.path)
        query = {name: values[0] for name, values in parse_qs(where.query).items()}
        with self._changed:
            self.asked.append(request.path)
            if self.failing:
                self.failing -= 1
                request.send_error(503)
                return
            if where.path != PATH or request.headers["Metadata-Flavor"] != "Google":
                request.send_error(403)
                return
            if query.get("wait_for_change") == "true" and query.get("last_etag") == str(self._etag):
                # A shorter wait than asked for is allowed.
                self._changed.wait(2.0)
            self.told.append(self.value)
            body, etag = self.value.encode(), str(self._etag)
        request.send_response(200)
        if self.google:
            request.send_header("Metadata-Flavor", "Google")
        request.send_header("ETag", etag)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)


@contextmanager
def metadata_server() -> Iterator[MetadataServer]:
    """One on loopback; `host` is where."""
    server = MetadataServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.answer(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.host = f"127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
