from __future__ import annotations

from pathlib import Path

import pytest

from cotenant.config.model import Gateway
from cotenant.errors import EnvironmentFault
from cotenant.gateway.keys import is_loopback, load_keys

pytestmark = pytest.mark.unit


def test_each_key_belongs_to_its_tenant_and_a_bare_key_to_the_default_one() -> None:
    keys = load_keys(Gateway(), {"COTENANT_API_KEYS": "acme:k-1, bolt:k:2 ,k-3,"})
    assert [keys.tenant_of(key) for key in ("k-1", "k:2", "k-3", "k", "", "k-1 ")] == [
        "acme", "bolt", "default", None, None, None,
    ]  # fmt: skip


def test_a_key_file_takes_one_key_a_line_with_comments_and_adds_to_the_variable(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nacme:a\n\n  bolt:b  \n")
    keys = load_keys(Gateway(keys_file=str(file)), {"COTENANT_API_KEYS": "core:c"})
    assert [keys.tenant_of(key) for key in "abc#"] == ["acme", "bolt", "core", None]


def test_without_a_key_the_door_is_open_on_loopback_only() -> None:
    assert not load_keys(Gateway(host="127.0.0.1"), {})
    assert not load_keys(Gateway(host="::1"), {"COTENANT_API_KEYS": "  "})
    with pytest.raises(EnvironmentFault, match=r"listens on 0\.0\.0\.0.*COTENANT_API_KEYS.*127\.0\.0\.1"):
        load_keys(Gateway(host="0.0.0.0"), {})
    with pytest.raises(EnvironmentFault, match=r"gateway\.keys_file"):
        load_keys(Gateway(host="10.0.0.7", keys_env=None), {"COTENANT_API_KEYS": "a:b"})
    assert load_keys(Gateway(host="0.0.0.0"), {"COTENANT_API_KEYS": "a:b"})


@pytest.mark.parametrize(
    "text", ["acme:", ":secret-1", "ac me:secret-1", "acme:secret 1", "acme:sécret-1"], ids=lambda text: text
)
def test_a_malformed_entry_is_refused_by_number_without_quoting_it(text: str) -> None:
    with pytest.raises(EnvironmentFault, match="entry 2 of the variable COTENANT_API_KEYS") as caught:
        load_keys(Gateway(), {"COTENANT_API_KEYS": f"good:key,{text}"})
    assert "cret" not in str(caught.value)


def test_one_key_for_two_tenants_is_refused() -> None:
    with pytest.raises(EnvironmentFault, match=r"entry 2 .* another tenant has"):
        load_keys(Gateway(), {"COTENANT_API_KEYS": "acme:same,bolt:same"})


def test_a_missing_key_file_is_refused() -> None:
    with pytest.raises(EnvironmentFault, match="can't be read"):
        load_keys(Gateway(keys_file="/nowhere/keys"), {"COTENANT_API_KEYS": "a:b"})


def test_the_keyring_does_not_show_or_hold_its_keys() -> None:
    keys = load_keys(Gateway(), {"COTENANT_API_KEYS": "acme:hush-hush"})
    assert "hush" not in repr(keys)
    assert "hush" not in repr(dict(keys.tenants))


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False)],
)
def test_loopback_is_told_from_the_rest(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
