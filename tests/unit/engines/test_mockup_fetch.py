"""Artwork by URL: what is refused, and that the checked address is the one connected to. No socket is opened."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from cotenant.engines.pictures.fetch import MAX_REDIRECTS, Fetcher
from cotenant.engines.pictures.refusal import BadRequest
from cotenant.engines.pictures.source import MAX_PICTURE_BYTES
from tests.contracts.scripted_network import PUBLIC, Network, answer, resolver_of

pytestmark = pytest.mark.unit


def fetcher(network: Network, names: dict[str, list[str]] | None = None, **options: Any) -> Fetcher:
    return Fetcher(resolver=resolver_of(names or {"example.com": [PUBLIC]}), backend=network, **options)


async def test_a_public_picture_is_fetched_from_the_address_that_was_checked() -> None:
    network = Network(answer())
    assert await fetcher(network).fetch("http://example.com/a/b.png?c=1#top") == b"picture"
    assert network.connected == [(PUBLIC, 80)]
    assert network.written.startswith(b"GET /a/b.png?c=1 HTTP/1.1\r\nHost: example.com\r\n")


async def test_https_connects_to_the_checked_address_and_verifies_the_name() -> None:
    network = Network(answer())
    assert await fetcher(network).fetch("https://example.com/a.png") == b"picture"
    assert network.connected == [(PUBLIC, 443)]
    assert network.verified == ["example.com"]


async def test_a_name_that_changes_its_mind_after_the_check_gains_nothing() -> None:
    network = Network(answer())
    turns = iter([[PUBLIC], ["127.0.0.1"]])

    async def rebinding(host: str, port: int) -> Sequence[str]:
        return next(turns)

    await Fetcher(resolver=rebinding, backend=network).fetch("http://example.com/a.png")
    assert network.connected == [(PUBLIC, 80)]


@pytest.mark.parametrize(
    ("url", "addresses"),
    [
        pytest.param("http://localhost/a.png", ["127.0.0.1", "::1"], id="loopback"),
        pytest.param("http://metadata.google.internal/x", ["169.254.169.254"], id="metadata"),
        pytest.param("http://mixed.example/a.png", [PUBLIC, "10.0.0.1"], id="one private among public"),
        pytest.param("http://2130706433/a.png", ["127.0.0.1"], id="address as one number"),
        pytest.param("http://[::ffff:127.0.0.1]/a.png", ["::ffff:127.0.0.1"], id="mapped"),
    ],
)
async def test_a_host_inside_is_refused_before_any_connection(url: str, addresses: list[str]) -> None:
    network = Network()

    async def resolver(host: str, port: int) -> Sequence[str]:
        return addresses

    with pytest.raises(BadRequest, match="not on the public internet") as caught:
        await Fetcher(resolver=resolver, backend=network).fetch(url)
    assert network.connected == []
    assert not any(address in str(caught.value) for address in addresses if address not in url)


async def test_a_redirect_inside_is_refused_too() -> None:
    network = Network(answer(b"", status="302 Found", location="http://inside.example/secret"))
    names = {"example.com": [PUBLIC], "inside.example": ["192.168.0.10"]}
    with pytest.raises(BadRequest, match="not on the public internet"):
        await fetcher(network, names).fetch("http://example.com/a.png")
    assert network.connected == [(PUBLIC, 80)]


async def test_redirects_are_followed_a_few_times_and_no_more() -> None:
    hop = answer(b"", status="302 Found", location="/next.png")
    network = Network(*[hop] * MAX_REDIRECTS, answer())
    assert await fetcher(network).fetch("http://example.com/a.png") == b"picture"
    with pytest.raises(BadRequest, match="redirects more than"):
        await fetcher(Network(*[hop] * (MAX_REDIRECTS + 1))).fetch("http://example.com/a.png")


@pytest.mark.parametrize(
    ("location", "said"),
    [("file:///etc/passwd", "http and https only"), ("http://example.com:6379/", "port 80 only")],
)
async def test_a_redirect_keeps_to_the_rules_of_a_first_url(location: str, said: str) -> None:
    network = Network(answer(b"", status="301 Moved", location=location))
    with pytest.raises(BadRequest, match=said):
        await fetcher(network).fetch("http://example.com/a.png")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://example.com:22/a.png", "port 80 only"),
        ("https://example.com:80/a.png", "port 443 only"),
        ("http://user:secret@example.com/a.png", "user name"),
        ("http:///a.png", "http and https only"),
        ("http://exa mple.com/\x00", "not valid"),
        ("http://nowhere.example/a.png", "has no address"),
    ],
)
async def test_a_url_that_breaks_the_rules_is_a_400(url: str, said: str) -> None:
    with pytest.raises(BadRequest, match=said) as caught:
        await fetcher(Network()).fetch(url)
    assert (caught.value.status, caught.value.param) == (400, "artwork")


async def test_an_answer_that_says_it_is_too_large_is_not_read() -> None:
    network = Network(answer(b"", content_length=str(MAX_PICTURE_BYTES + 1)))
    with pytest.raises(BadRequest) as caught:
        await fetcher(network).fetch("http://example.com/a.png")
    assert caught.value.status == 413


async def test_an_endless_answer_is_cut_off_at_the_cap() -> None:
    endless = b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\n\r\n" + bytes(MAX_PICTURE_BYTES * 2)
    network = Network(endless)
    with pytest.raises(BadRequest) as caught:
        await fetcher(network).fetch("http://example.com/a.png")
    assert caught.value.status == 413
    assert network.reads < MAX_PICTURE_BYTES // 65536 + 8


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        pytest.param(answer(content_type="text/html"), "leads to text/html", id="page"),
        pytest.param(answer(status="404 Not Found"), "answered 404", id="missing"),
        pytest.param(answer(status="206 Partial Content"), "answered 206", id="partial"),
        pytest.param(answer(content_encoding="gzip"), "compressed", id="gzip"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", "can't be fetched", id="not http"),
    ],
)
async def test_only_a_plain_image_is_accepted(reply: bytes, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        await fetcher(Network(reply)).fetch("http://example.com/a.png")


async def test_the_next_address_is_tried_when_one_refuses() -> None:
    network = Network(answer(), refuse=["8.8.4.4"])
    names = {"example.com": ["8.8.4.4", PUBLIC]}
    assert await fetcher(network, names).fetch("http://example.com/a.png") == b"picture"
    assert network.connected == [("8.8.4.4", 80), (PUBLIC, 80)]


async def test_a_host_that_takes_too_long_is_a_400() -> None:
    async def never(host: str, port: int) -> Sequence[str]:
        await asyncio.sleep(60)
        return []

    with pytest.raises(BadRequest, match="too long"):
        await Fetcher(resolver=never, backend=Network(), total_timeout_s=0.01).fetch("http://example.com/a.png")


async def test_only_a_trusted_host_may_be_inside_or_on_another_port() -> None:
    names = {"store": ["10.0.0.5"], "other": ["10.0.0.5"]}
    network = Network(answer())
    trusting = fetcher(network, names, trusted_hosts=["store:9000"])
    assert await trusting.fetch("http://store:9000/a.png") == b"picture"
    for url in ("http://store/a.png", "http://other:9000/a.png"):
        with pytest.raises(BadRequest):
            await trusting.fetch(url)


def test_nothing_is_trusted_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COTENANT_ARTWORK_TRUSTED_HOSTS", raising=False)
    assert Fetcher.from_environment()._trusted == frozenset()
    monkeypatch.setenv("COTENANT_ARTWORK_TRUSTED_HOSTS", "Store:9000, minio")
    assert Fetcher.from_environment()._trusted == {"store:9000", "minio"}
