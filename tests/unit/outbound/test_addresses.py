"""Which hosts are inside, told from an address and from a name."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.outbound.addresses import is_public, names_inside, parse_hosts
from tests.contracts.scripted_network import PUBLIC

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1", "100.127.255.255", "192.0.0.192", "192.88.99.1", "198.18.0.1", "203.0.113.9", "224.0.0.1",
        "239.255.255.250", "240.0.0.1", "255.255.255.255", "::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
        "::ffff:8.8.8.8", "::127.0.0.1", "::ffff:0:127.0.0.1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254",
        "fec0::1", "ff02::1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::7f00:1", "2002:7f00:1::", "2002:a9fe:a9fe::1",
        "2001::1", "2001:db8::1", "100::1", "3fff::1", "2a00:1450:4001::5efe:a00:1", "2a00:1450:4001::200:5efe:a00:1",
        "not an address", "",
    ],
)  # fmt: skip
def test_no_inside_address_counts_as_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", PUBLIC, "1.1.1.1", "2606:4700:4700::1111", "2a00:1450:4001:82a::200e"])
def test_ordinary_hosts_are_public(address: str) -> None:
    assert is_public(address)


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
def test_whatever_the_standard_library_calls_inside_is_never_public(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    if not address.is_global or address.is_multicast or address.is_loopback or address.is_link_local:
        assert not is_public(str(address))


@given(st.ip_addresses(v=4))
def test_an_ipv4_inside_is_inside_in_every_notation(address: ipaddress.IPv4Address) -> None:
    number, octets = int(address), address.packed
    notations = [
        str(number),
        hex(number),
        f"0{number:o}",
        f"{octets[0]}.{number & 0xFFFFFF}",
        f"{octets[0]:#x}.{octets[1]:#x}.{number & 0xFFFF}",
        str(address),
        f"{address}.",
    ]
    assert {names_inside(text) for text in notations} == {not is_public(str(address))}
    assert names_inside(f"::ffff:{address}")
    assert names_inside(f"[::ffff:{address}]")


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "LOCALHOST", "localhost.", "a.localhost", "printer.local", "metadata.google.internal", "db",
        "metadata", "home.arpa", "nas.home.arpa", "host.localdomain", "::1", "fe80::1%25eth0", "fd00::1", "127.1", "0",
        "0x7f.1",
    ],
)  # fmt: skip
def test_a_name_that_can_only_be_inside_is_told_by_its_text(host: str) -> None:
    assert names_inside(host)


@pytest.mark.parametrize(
    "host", ["example.com", "example.com.", "localhost.example.com", "internal.example", "8.8.8.8", "2a00:1450::200e"]
)
def test_an_ordinary_name_is_left_to_be_resolved(host: str) -> None:
    assert not names_inside(host)


def test_a_list_of_trusted_hosts_is_read_without_regard_to_case_and_blanks() -> None:
    assert parse_hosts(" Store:9000, minio,, ") == parse_hosts(["store:9000", "MINIO "]) == {"store:9000", "minio"}
    assert parse_hosts("") == frozenset()
