"""Which URLs are taken for webhooks; the deliverers: the in-memory twin, and the real one over a scripted network."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from cotenant.errors import OutboundError, UrlInvalid, UrlRefused
from cotenant.outbound.delivery import (
    MAX_URL_CHARS,
    HttpDeliver,
    InMemoryDeliver,
    check_url,
    load_trusted_hosts,
)
from cotenant.outbound.webhooks import Answered, Failed, Failure, Outcome, retry_after_s
from tests.contracts.scripted_network import PUBLIC, Network, answer, resolver_of
from tests.contracts.webhook_delivery import NOW_S, DeliverContract

pytestmark = pytest.mark.unit

URL = "https://example.com/hook"


class TwinHouse:
    url, nobody_url, inside_url = URL, "https://example.com/nobody", "https://127.0.0.1/hook"

    def __init__(self) -> None:
        self.received: list[tuple[Mapping[str, str], bytes]] = []
        self.answers: list[Outcome] = []
        self.deliver = InMemoryDeliver({URL: self.receive, self.inside_url: self.receive})

    def will_answer(self, status: int, headers: Mapping[str, str]) -> None:
        self.answers.append(Answered(status, retry_after_s(headers.get("retry-after", ""), NOW_S)))

    def receive(self, headers: Mapping[str, str], body: bytes) -> Outcome:
        self.received.append((headers, body))
        return self.answers.pop(0)


class TestInMemoryDeliver(DeliverContract):
    @pytest.fixture
    def house(self) -> TwinHouse:
        return TwinHouse()

    async def test_it_remembers_every_attempt_refused_ones_too(self, house: TwinHouse) -> None:
        house.will_answer(200, {})
        for url in (house.url, house.inside_url, house.nobody_url):
            await house.deliver.post(url, {"webhook-id": "msg_1"}, b"{}")
        assert [attempt.url for attempt in house.deliver.posted] == [URL, house.inside_url, house.nobody_url]


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/hook", "https://example.com:443/hook?tenant=acme", "HTTPS://EXAMPLE.COM/",
        "https://bücher.example/ä", "https://93.184.216.34/", "https://[2606:4700:4700::1111]/", "https://a.b.example./",
    ],
)  # fmt: skip
def test_an_ordinary_https_url_is_taken(url: str) -> None:
    check_url(url)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://example.com/hook", "https only"),
        ("ftp://example.com/hook", "https only"),
        ("example.com/hook", "https only"),
        ("https:///hook", "https only"),
        ("https://user:secret@example.com/hook", "user name"),
        ("https://@127.0.0.1:80@example.com/", "user name"),
        ("https://exa mple.com:x/", "not valid"),
        ("https://example.com/\r\nx: y", "not valid"),
        ("https://300.300.300.300/", "not valid"),
        (f"https://example.com/{'a' * MAX_URL_CHARS}", "2048 are taken"),
    ],
)
def test_what_is_no_https_url_is_invalid(url: str, said: str) -> None:
    with pytest.raises(UrlInvalid, match=said) as caught:
        check_url(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com:8443/", "https://localhost/", "https://LocalHost./", "https://hooks.localhost/",
        "https://127.0.0.1/", "https://127.1/", "https://2130706433/", "https://0x7f000001/", "https://0177.0.0.1/",
        "https://169.254.169.254/latest/meta-data", "https://10.0.0.1/", "https://192.168.1.1/", "https://0.0.0.0/",
        "https://100.64.0.1/", "https://[::1]/", "https://[::]/", "https://[::ffff:127.0.0.1]/",
        "https://[0:0:0:0:0:ffff:7f00:1]/", "https://[::127.0.0.1]/", "https://[fe80::1%25eth0]/", "https://[fd00::1]/",
        "https://[64:ff9b::7f00:1]/", "https://[2002:7f00:1::]/", "https://metadata.google.internal/",
        "https://db/", "https://printer.local/", "https://127\u30020\u30020\u30021/",
    ],
)  # fmt: skip
def test_what_leads_inside_is_refused_when_it_is_handed_in(url: str) -> None:
    with pytest.raises(OutboundError) as caught:
        check_url(url)
    assert isinstance(caught.value, UrlRefused) or "not valid" in str(caught.value)


def test_a_trusted_host_may_be_inside_on_any_port_by_plain_http() -> None:
    trusted = load_trusted_hosts({"COTENANT_WEBHOOK_TRUSTED_HOSTS": "Receiver:8080, 10.0.0.7"})
    for url in ("http://receiver:8080/hook", "https://receiver:8080/", "http://10.0.0.7/", "https://10.0.0.7:9/"):
        check_url(url, trusted)
    for url in ("http://receiver/hook", "https://receiver/", "http://10.0.0.8/", "https://user@10.0.0.7/"):
        with pytest.raises(OutboundError):
            check_url(url, trusted)
    assert load_trusted_hosts({}) == frozenset()


def http(network: Network, **names: list[str]) -> HttpDeliver:
    known = {"example.com": [PUBLIC]} | {f"{name}.example": addresses for name, addresses in names.items()}
    return HttpDeliver(resolver=resolver_of(known), backend=network, timeout_s=0.2, clock=lambda: NOW_S)


async def test_a_url_that_was_taken_is_checked_again_when_its_name_leads_inside() -> None:
    check_url("https://rebound.example/hook")
    network = Network()
    outcome = await http(network, rebound=["10.0.0.5"]).post("https://rebound.example/hook", {}, b"{}")
    assert outcome == Failed(Failure.REFUSED, "the webhook's host 'rebound.example' is not on the public internet")
    assert network.connected == []


async def test_how_a_delivery_failed_is_told_by_its_kind() -> None:
    silent = await http(Network(b"", hangs=True)).post(URL, {}, b"{}")
    assert silent == Failed(Failure.TIMED_OUT, "the webhook's host took too long to answer")
    down = await http(Network(refuse=[PUBLIC])).post(URL, {}, b"{}")
    assert down == Failed(Failure.UNREACHABLE, "the webhook can't be delivered (ConnectError); is the URL right?")
    unknown = await http(Network()).post("https://nowhere.example/", {}, b"{}")
    assert unknown == Failed(Failure.UNREACHABLE, "the webhook's host 'nowhere.example' has no address")
    invalid = await http(Network()).post("http://example.com/", {}, b"{}")
    assert invalid == Failed(Failure.REFUSED, "the webhook's URL takes https only")


async def test_a_header_that_would_break_the_request_apart_is_not_sent() -> None:
    network = Network(answer())
    outcome = await http(network).post(URL, {"webhook-id": "a\r\nx-evil: 1"}, b"{}")
    assert isinstance(outcome, Failed)
    assert b"evil" not in network.written


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0), ("120", 120.0), (" 7 ", 7.0), ("9" * 400, float("9" * 12)), ("", None), ("soon", None),
        ("-5", None), ("1.5", None), ("\u0663", None),
        ("Tue, 14 Nov 2023 22:15:20 GMT", 120.0), ("Tue, 14 Nov 2023 22:00:00 GMT", 0.0),
        ("Tue, 14 Nov 2023 22:15:20 -0000", 120.0), ("Tue, 99 Nov 2023 22:15:20 GMT", None),
    ],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date(value: str, seconds: float | None) -> None:
    assert retry_after_s(value, NOW_S) == seconds
