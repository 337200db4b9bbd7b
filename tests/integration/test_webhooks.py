"""Webhooks over real sockets: a receiver on loopback, plain and by TLS."""

from __future__ import annotations

import datetime
import ssl
import threading
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from cotenant.errors import SignatureInvalid
from cotenant.outbound.delivery import HttpDeliver, load_trusted_hosts
from cotenant.outbound.webhooks import (
    Answered,
    Event,
    Failed,
    Failure,
    Fate,
    after,
    load_secrets,
    message_id,
    payload,
    signed_headers,
    verify,
)
from tests.contracts.webhook_delivery import DeliverContract

pytestmark = pytest.mark.integration
#: `scripts/test` runs it beside another.
WAITS_MORE_THAN_IT_COMPUTES = True

OLD, NEW = "whsec_" + "b2xk" * 8, "whsec_" + "bmV3" * 8


class Receiver:
    """A server on loopback that answers in order, 200 when nothing is left, and keeps what it got."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.received: list[tuple[Mapping[str, str], bytes]] = []
        self.answers: list[tuple[int, Mapping[str, str]]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.received.append((dict(self.headers.items()), body))
                status, headers = receiver.answers.pop(0) if receiver.answers else (200, {})
                self.send_response(status)
                for name, value in {"content-length": "0", **headers}.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


class LoopbackHouse:
    def __init__(self, receiver: Receiver, unused_port: int) -> None:
        here = f"127.0.0.1:{receiver.port}"
        self.url = f"http://{here}/hook"
        self.nobody_url = f"http://127.0.0.1:{unused_port}/"
        self.inside_url = f"https://localhost:{receiver.port}/"
        trusted = load_trusted_hosts({"COTENANT_WEBHOOK_TRUSTED_HOSTS": f"{here}, 127.0.0.1:{unused_port}"})
        self.deliver = HttpDeliver(trusted=trusted, timeout_s=5)
        self.received = receiver.received
        self._answers = receiver.answers

    def will_answer(self, status: int, headers: Mapping[str, str]) -> None:
        self._answers.append((status, headers))


class TestHttpDeliver(DeliverContract):
    @pytest.fixture
    def house(self, receiver: Receiver, unused_tcp_port: int) -> LoopbackHouse:
        return LoopbackHouse(receiver, unused_tcp_port)


async def test_a_webhook_that_fails_twice_arrives_at_the_third_attempt_and_is_believed(receiver: Receiver) -> None:
    receiver.answers += [(500, {}), (503, {"retry-after": "900"})]
    deliver = HttpDeliver(trusted=frozenset({f"127.0.0.1:{receiver.port}"}))
    ours = load_secrets({"COTENANT_WEBHOOK_SECRETS": f"acme:{OLD},acme:{NEW}"}).for_tenant("acme")
    theirs = load_secrets({"COTENANT_WEBHOOK_SECRETS": f"acme:{NEW}"}).for_tenant("acme")
    ident = message_id("acme", "batch-1", "mug-7", Event.JOB_SUCCEEDED.value)
    happened_s = now_s = 1_700_000_000.0
    body = payload(Event.JOB_SUCCEEDED, happened_s, {"id": "mug-7", "batch": "batch-1"})

    times_s, attempts = [], 0
    while True:
        attempts += 1
        times_s.append(now_s - happened_s)
        headers = signed_headers(ours, ident, now_s, body)
        outcome = await deliver.post(f"http://127.0.0.1:{receiver.port}/hook?tenant=acme", headers, body)
        what_next = after(outcome, attempts, now_s)
        if what_next.fate is not Fate.RETRY:
            break
        assert what_next.at_s is not None
        now_s = what_next.at_s

    assert (what_next.fate, attempts) == (Fate.DELIVERED, 3)
    assert times_s == [0, 5, 905]
    assert len(receiver.received) == 3
    for (received, data), sent_after_s in zip(receiver.received, times_s, strict=True):
        assert verify(received, data, theirs, happened_s + sent_after_s) == ident
        assert data == body
    first = receiver.received[0]
    with pytest.raises(SignatureInvalid, match="too old"):
        verify(*first, theirs, now_s)
    with pytest.raises(SignatureInvalid, match="no signature"):
        verify(first[0], first[1].replace(b"mug-7", b"mug-8"), theirs, happened_s)


async def test_a_receiver_that_hangs_costs_the_timeout_and_no_more(unused_tcp_port: int) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", unused_tcp_port), BaseHTTPRequestHandler)  # accepts, is never served
    try:
        deliver = HttpDeliver(trusted=frozenset({f"127.0.0.1:{unused_tcp_port}"}), timeout_s=0.3)
        outcome = await deliver.post(f"http://127.0.0.1:{unused_tcp_port}/", {}, b"{}")
    finally:
        server.server_close()
    assert isinstance(outcome, Failed)
    assert outcome.failure is Failure.TIMED_OUT


async def test_loopback_by_any_name_is_refused_where_it_is_not_trusted(receiver: Receiver) -> None:
    for host in ("127.0.0.1", "localhost", "2130706433", "127.1", "[::ffff:127.0.0.1]", "[::1]"):
        outcome = await HttpDeliver().post(f"https://{host}/", {}, b"{}")
        assert isinstance(outcome, Failed)
        assert outcome.failure is Failure.REFUSED
    assert receiver.received == []


# --- TLS ---


def certificate(folder: Path, *names: str) -> tuple[Path, ssl.SSLContext]:
    """A certificate for `names` that signs itself: the file to trust it by, and the server's side."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "webhook test")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / "both.pem"
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(secret + made.public_bytes(Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return file, context


async def test_tls_goes_to_the_checked_address_and_insists_on_the_urls_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def everything_is_here(host: str, port: int) -> Sequence[str]:
        return ["127.0.0.1"]

    file, tls = certificate(tmp_path, "hooks.example")
    receiver = Receiver(tls)
    try:
        trusted = frozenset({f"{name}.example:{receiver.port}" for name in ("hooks", "other")})
        url = f"https://hooks.example:{receiver.port}/"
        stranger = HttpDeliver(trusted=trusted, resolver=everything_is_here)
        outcome = await stranger.post(url, {}, b"{}")
        assert isinstance(outcome, Failed), "a certificate that nobody vouches for"
        assert outcome.failure is Failure.UNREACHABLE

        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        deliver = HttpDeliver(trusted=trusted, resolver=everything_is_here)
        assert await deliver.post(url, {}, b"{}") == Answered(200)
        outcome = await deliver.post(f"https://other.example:{receiver.port}/", {}, b"{}")
        assert isinstance(outcome, Failed), "another name than the certificate's"
        assert len(receiver.received) == 1
    finally:
        receiver.close()
