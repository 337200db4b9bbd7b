"""The one guarded way out: what it refuses, where it connects, what it follows, how much it reads. No socket."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from cotenant.errors import OutboundError, TimedOut, Unreachable, UrlInvalid, UrlRefused
from cotenant.outbound.client import DRAINED_BYTES, Answer, GuardedHttp, Policy
from tests.contracts.scripted_network import PUBLIC, Network, answer, resolver_of

pytestmark = pytest.mark.unit

NAMES = {"example.com": [PUBLIC], "inside.example": ["192.168.0.10"], "store": ["10.0.0.5"]}
READING = Policy("fetched", max_redirects=2, max_answer_bytes=1000)
POSTING = Policy("delivered", schemes=("https",))


def client(network: Network, policy: Policy = READING, **options: Any) -> GuardedHttp:
    return GuardedHttp(policy, **{"resolver": resolver_of(NAMES), "backend": network, **options})


async def get(http: GuardedHttp, url: str, **options: Any) -> Answer:
    return await http.call("GET", url, "thing", headers={}, **options)


async def post(http: GuardedHttp, url: str, body: bytes = b"{}") -> Answer:
    return await http.call("POST", url, "thing", headers={"content-type": "application/json"}, body=body)


async def test_a_post_goes_to_the_checked_address_with_its_body_and_length() -> None:
    network = Network(answer(b"ok"))
    sent = await post(client(network, POSTING), "https://example.com/hook?a=1", b'{"a":1}')
    assert (sent.status, sent.body) == (200, b"")
    assert (network.connected, network.verified) == ([(PUBLIC, 443)], ["example.com"])
    head, _, body = network.written.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /hook?a=1 HTTP/1.1\r\nHost: example.com\r\n")
    assert b"content-length: 7" in head.lower()
    assert body == b'{"a":1}'


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
async def test_a_post_follows_no_redirect_whatever_its_policy_says(status: str) -> None:
    network = Network(answer(b"", status=status, location="https://example.com/elsewhere"))
    sent = await post(client(network, READING), "https://example.com/hook")
    assert sent.status == int(status[:3])
    assert len(network.connected) == 1


async def test_a_policy_without_redirects_gives_the_redirect_itself() -> None:
    network = Network(answer(b"", status="302 Found", location="http://inside.example/"))
    assert (await get(client(network, POSTING), "https://example.com/")).status == 302


async def test_a_redirect_is_a_new_hop_with_the_same_checks() -> None:
    hop = answer(b"", status="302 Found", location="http://inside.example/secret")
    network = Network(hop)
    with pytest.raises(UrlRefused, match=r"inside\.example' is not on the public internet"):
        await get(client(network), "http://example.com/")
    assert network.connected == [(PUBLIC, 80)]
    with pytest.raises(Unreachable, match="redirects more than 2 times"):
        await get(client(Network(*[answer(b"", status="302 Found", location="/again")] * 3)), "http://example.com/")


@pytest.mark.parametrize(
    "location", ["http://[::1/", "http://exa mple.com:x/", "http://u:p@example.com/", "gopher://a/"]
)
async def test_a_redirect_to_what_is_no_url_is_refused(location: str) -> None:
    network = Network(answer(b"", status="302 Found", location=location))
    with pytest.raises(UrlInvalid):
        await get(client(network), "http://example.com/")
    assert len(network.connected) == 1


async def test_a_redirect_from_a_trusted_host_is_not_trusted() -> None:
    network = Network(answer(b"", status="302 Found", location="http://inside.example/"))
    with pytest.raises(UrlRefused):
        await get(client(network, trusted=frozenset({"store"})), "http://store/")
    assert network.connected == [("10.0.0.5", 80)]


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"], ["169.254.169.254"], ["10.0.0.1", PUBLIC], [PUBLIC, "fd00::1"], ["::1"], ["::ffff:10.0.0.1"],
        ["64:ff9b::7f00:1"], ["fe80::1%eth0"], ["2002:7f00:1::"], ["0.0.0.0"],
    ],
    ids=" ".join,
)  # fmt: skip
@pytest.mark.parametrize("policy", [READING, POSTING], ids=["get", "post"])
async def test_a_name_that_resolves_inside_is_refused_before_any_connection(
    addresses: list[str], policy: Policy
) -> None:
    network = Network()
    http = client(network, policy, resolver=resolver_of({"rebound.example": addresses}))
    with pytest.raises(UrlRefused, match="not on the public internet") as caught:
        await (get if policy is READING else post)(http, "https://rebound.example/")
    assert network.connected == []
    assert not any(address in str(caught.value) for address in addresses)


async def test_each_call_resolves_once_and_connects_to_what_was_checked() -> None:
    network, asked = Network(answer()), []

    async def changing_its_mind(host: str, port: int) -> Sequence[str]:
        asked.append((host, port))
        return [PUBLIC] if len(asked) == 1 else ["127.0.0.1"]

    await get(client(network, resolver=changing_its_mind), "http://example.com/")
    assert (asked, network.connected) == ([("example.com", 80)], [(PUBLIC, 80)])


async def test_only_a_trusted_host_may_be_called_by_http_where_https_is_asked_for() -> None:
    with pytest.raises(UrlInvalid, match="https only"):
        await post(client(Network(), POSTING), "http://example.com/")
    network = Network(answer())
    trusting = client(network, POSTING, trusted=frozenset({"store:9000"}))
    assert (await post(trusting, "http://store:9000/hook")).status == 200
    assert network.connected == [("10.0.0.5", 9000)]
    with pytest.raises(OutboundError):
        await post(trusting, "http://store/hook")


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("https://example.com:8443/", UrlRefused),
        ("https://user@example.com/", UrlInvalid),
        ("https://example.com:99999/", UrlInvalid),
        ("https://example.com:0/", UrlInvalid),
        ("https://example.com:x/", UrlInvalid),
        ("ftp://example.com/", UrlInvalid),
        ("https:///path", UrlInvalid),
        ("//example.com/", UrlInvalid),
        ("example.com", UrlInvalid),
        ("", UrlInvalid),
        ("https://1.2.3.4.5:443@127.0.0.1/", UrlInvalid),
        ("https://example.com\\@127.0.0.1/", UrlInvalid),
        ("https://[::1/", UrlInvalid),
        ("https://exa\nmple.com/", UrlInvalid),
        ("https://\uff11\uff12\uff17.0.0.1/", UrlInvalid),
    ],
)
async def test_a_url_that_breaks_the_rules_makes_no_call(url: str, error: type[OutboundError]) -> None:
    network = Network()
    with pytest.raises(error):
        await post(client(network, POSTING), url)
    assert network.connected == []


async def test_a_trusted_hosts_port_must_exist_all_the_same() -> None:
    with pytest.raises(UrlInvalid):
        await get(client(Network(), trusted=frozenset({"store"})), "http://store:70000/")


async def test_a_host_name_that_no_resolver_takes_is_an_invalid_url() -> None:
    async def strict(host: str, port: int) -> Sequence[str]:
        return [host.encode("idna").decode()]

    with pytest.raises(UrlInvalid):
        await get(client(Network(), resolver=strict), f"http://{'a' * 70}.example/")


async def test_an_answer_is_cut_at_the_cap_and_says_so() -> None:
    exact, longer = (Network(answer(bytes(size))) for size in (1000, 1001))
    whole = await get(client(exact), "http://example.com/")
    cut = await get(client(longer), "http://example.com/")
    assert (len(whole.body), whole.whole) == (1000, True)
    assert (len(cut.body), cut.whole) == (1000, False)


async def test_an_unwanted_answer_is_neither_kept_nor_read_to_its_end() -> None:
    network = Network(answer(bytes(50 * 65536)))
    sent = await post(client(network, POSTING), "https://example.com/")
    assert (sent.status, sent.body) == (200, b"")
    assert network.reads < DRAINED_BYTES // 65536 + 5


async def test_a_status_counts_though_the_rest_of_the_answer_never_comes() -> None:
    network = Network(b"HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n", hangs=True)
    assert (await post(client(network, POSTING), "https://example.com/")).status == 204
    promised = Network(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this", hangs=True)
    hasty = Policy("delivered", total_timeout_s=0.2)
    assert (await post(client(promised, hasty), "https://example.com/")).status == 200
    with pytest.raises(TimedOut):
        await get(
            client(
                Network(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this", hangs=True),
                Policy("fetched", max_answer_bytes=1000, total_timeout_s=0.2),
            ),
            "https://example.com/",
        )


async def test_a_host_that_never_answers_times_out() -> None:
    with pytest.raises(TimedOut, match="the thing's host took too long"):
        await post(client(Network(b"", hangs=True), Policy("delivered", total_timeout_s=0.05)), "https://example.com/")


@pytest.mark.parametrize("reply", [b"SSH-2.0-OpenSSH_9.2\r\n", b"", b"HTTP/1.1 2000 OK\r\n\r\n"])
async def test_who_does_not_speak_http_is_unreachable(reply: bytes) -> None:
    with pytest.raises(Unreachable, match="the thing can't be delivered"):
        await post(client(Network(reply), POSTING), "https://example.com/")


async def test_an_endless_head_is_not_read_to_its_end() -> None:
    network = Network(b"HTTP/1.1 200 OK\r\n" + b"x: " + bytes(10 * 2**20).replace(b"\0", b"y"))
    with pytest.raises(Unreachable):
        await post(client(network, POSTING), "https://example.com/")
    assert network.reads < 10


async def test_no_error_quotes_the_url() -> None:
    for url in ("https://example.com:1/?token=hush", "https://u:hush@example.com/", "https://nowhere.example/hush"):
        with pytest.raises(OutboundError) as caught:
            await post(client(Network(), POSTING), url)
        assert "hush" not in str(caught.value)


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:3128")
    network = Network(answer())
    await post(client(network, POSTING), "https://example.com/")
    assert network.connected == [(PUBLIC, 443)]


async def test_a_cancelled_call_ends_at_once() -> None:
    call = asyncio.ensure_future(post(client(Network(b"", hangs=True), POSTING), "https://example.com/"))
    await asyncio.sleep(0.01)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(call, 1)
