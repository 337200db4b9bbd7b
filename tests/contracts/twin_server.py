"""The in-memory cluster behind Kubernetes' REST interface, as far as our client uses it.

So the client's requests, repetitions and watches are tried over a real connection where no API server was built.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cotenant.cluster.json_patch import read_document
from cotenant.cluster.memory import CLUSTER_WIDE, InMemoryCluster
from cotenant.cluster.objects import EVENT, NAMESPACE, POD, RAY_CLUSTER, RAY_SERVICE, Kind, Ref
from cotenant.cluster.order import SEARCHED
from cotenant.errors import Changed, ClusterError, FieldsOwned, Gone, ManifestRefused, NamespaceMissing

KINDS = (*SEARCHED, NAMESPACE, POD, EVENT, RAY_SERVICE, RAY_CLUSTER)
_PATH = re.compile(
    r"^/(?:api/(?P<core>v1)|apis/(?P<api>[^/]+/[^/]+))"
    r"(?:/namespaces/(?P<namespace>[^/]+)(?=/[^/]))?(?:/(?P<plural>[a-z]+)(?:/(?P<name>[^/]+)(?:/(?P<sub>status))?)?)?$"
)


@contextmanager
def serving(cluster: InMemoryCluster) -> Iterator[str]:
    """The address of an API server over `cluster`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"cluster": cluster}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def plural_of(kind: Kind) -> str:
    name = kind.name.lower()
    return f"{name}es" if name.endswith(("s", "x")) else f"{name[:-1]}ies" if name.endswith("cy") else f"{name}s"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cluster: InMemoryCluster

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PATCH = do_DELETE = do_GET

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        found = _PATH.match(url.path)
        if found is None:
            return self._send(404, _status(404, "NotFound", "the server could not find the requested resource"))
        try:
            self._act(found.groupdict(), query, body)
        except FieldsOwned as error:
            causes = [
                {"reason": "FieldManagerConflict", "message": f'conflict with "{manager}"', "field": field}
                for manager, fields in error.owners.items()
                for field in fields
            ]
            self._send(409, _status(409, "Conflict", str(error), causes))
        except Changed as error:
            self._send(409, _status(409, "Conflict", str(error).partition(": ")[2]))
        except Gone as error:
            self._send(410, _status(410, "Expired", str(error)))
        except ManifestRefused as error:
            self._send(422, _status(422, "Invalid", str(error)))
        except NamespaceMissing as error:
            self._send(404, _status(404, "NotFound", str(error).partition(": ")[2].partition(";")[0]))
        except ClusterError as error:
            self._send(404, _status(404, "NotFound", str(error)))
        return None

    def _act(self, at: dict[str, str | None], query: dict[str, str], body: Any) -> None:
        version = str(at["core"] or at["api"])
        kinds = [kind for kind in KINDS if kind.api_version == version and kind not in self.cluster._lacks]
        if at["plural"] is None:
            if not kinds:
                return self._send(404, _status(404, "NotFound", "the server could not find the requested resource"))
            told = [
                {"name": plural_of(kind), "kind": kind.name, "namespaced": kind not in CLUSTER_WIDE} for kind in kinds
            ]
            return self._send(200, {"kind": "APIResourceList", "groupVersion": version, "resources": told})
        kind = next(kind for kind in kinds if plural_of(kind) == at["plural"])
        if at["name"] is None and self.command == "GET":
            return self._list(kind, at["namespace"], query)
        if self.command == "POST":
            return self._send(201, self.cluster.create(body))
        ref = Ref(kind, str(at["name"]), at["namespace"])
        if self.command == "DELETE":
            gone = self.cluster.delete(ref)
            return self._send(200 if gone else 404, _status(200 if gone else 404, "", ""))
        if self.command == "PATCH":
            after = self._patch(ref, at["sub"], query, body)
            return self._send(int(after["code"]) if after.get("kind") == "Status" else 200, after)
        thing = self.cluster.get(ref)
        if thing is None:
            return self._send(404, _status(404, "NotFound", f"{ref} not found"))
        return self._send(200, thing)

    def _patch(self, ref: Ref, sub: str | None, query: dict[str, str], body: Any) -> Any:
        if "apply-patch" in str(self.headers.get("Content-Type")):
            return self.cluster.apply(body, dry_run="dryRun" in query, force=query.get("force") == "true")
        if sub == "status":
            return self.cluster.set_status(ref, body["status"])
        if "json-patch" in str(self.headers.get("Content-Type")):
            try:
                after = self.cluster.edit(ref, read_document(body), dry_run="dryRun" in query)
            except Changed:
                return _status(422, "Invalid", "the server rejected our request due to an error in our request")
            return _status(404, "NotFound", f"{ref} not found") if after is None else after
        return self.cluster.patch(ref, body, manager=query["fieldManager"])

    def _list(self, kind: Kind, namespace: str | None, query: dict[str, str]) -> None:
        labels = dict(pair.split("=") for pair in query.get("labelSelector", "").split(",") if pair)
        if query.get("watch") != "true":
            listing = self.cluster.list(kind, namespace, labels)
            return self._send(200, {"metadata": {"resourceVersion": listing.version}, "items": list(listing.items)})
        name = query["fieldSelector"].partition("=")[2] if "fieldSelector" in query else None
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            changes = self.cluster.watch(
                kind,
                str(namespace),
                since=query["resourceVersion"],
                timeout_s=float(query["timeoutSeconds"]),
                name=name,
                labels=labels,
            )
            for change in changes:
                self._line({"type": change.type.upper(), "object": change.object})
        except Gone as error:
            self._line({"type": "ERROR", "object": _status(410, "Expired", str(error))})
        except OSError:  # the watcher has gone
            self.close_connection = True
            return None
        self.wfile.write(b"0\r\n\r\n")
        return None

    def _line(self, told: Any) -> None:
        line = json.dumps(told).encode() + b"\n"
        self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
        self.wfile.flush()

    def _send(self, code: int, answer: Any) -> None:
        body = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _status(code: int, reason: str, message: str, causes: Any = ()) -> dict[str, Any]:
    return {
        "kind": "Status",
        "code": code,
        "reason": reason,
        "message": message,
        "details": {"causes": list(causes)},
    }
