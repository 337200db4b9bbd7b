"""API keys: who is calling, and whether anybody may.

Only hashes are kept, and a presented key is compared with all of them in constant time. The door stands open
only where no key is configured *and* it listens on loopback; any other address without a key is refused at
start, not discovered later.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cotenant.config.model import Gateway
from cotenant.errors import EnvironmentFault

DEFAULT_TENANT = "default"

_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KEY = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True)
class Keyring:
    """The keys' hashes, and whose each is. Empty means that no key is asked for."""

    tenants: Mapping[bytes, str] = field(default_factory=dict, repr=False)

    def __bool__(self) -> bool:
        return bool(self.tenants)

    def tenant_of(self, key: str) -> str | None:
        """The owner of `key`, or None if it is nobody's."""
        presented = _digest(key)
        owner = None
        for digest, tenant in self.tenants.items():
            if hmac.compare_digest(digest, presented):
                owner = tenant
        return owner


def load_keys(gateway: Gateway, environ: Mapping[str, str]) -> Keyring:
    """The keys that the gateway's variable and file hold.

    Raises:
        EnvironmentFault: an entry is malformed, a key has two owners, the file can't be read, or there is no
            key and the gateway listens to more than this machine.
    """
    tenants: dict[bytes, str] = {}
    variable = gateway.keys_env
    if variable and environ.get(variable, "").strip():
        _add(tenants, environ[variable].split(","), f"the variable {variable}")
    if gateway.keys_file:
        try:
            text = Path(gateway.keys_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise EnvironmentFault(
                f"the key file {gateway.keys_file} can't be read ({type(error).__name__}); "
                "write it with one tenant:key a line, or drop gateway.keys_file"
            ) from error
        _add(tenants, text.splitlines(), f"the key file {gateway.keys_file}")
    if not tenants and not is_loopback(gateway.host):
        where = " or ".join(
            filter(None, (variable and f"the variable {variable}", gateway.keys_file or "gateway.keys_file"))
        )
        raise EnvironmentFault(
            f"the gateway listens on {gateway.host}, which other machines may reach, and has no API key; "
            f"set one (tenant:key) in {where}, or listen on 127.0.0.1"
        )
    return Keyring(tenants)


def is_loopback(host: str) -> bool:
    """Whether `host` (an address or a name) reaches this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        pass
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return bool(found) and all(ipaddress.ip_address(address).is_loopback for address in found)


def _add(tenants: dict[bytes, str], entries: Iterable[str], source: str) -> None:
    for number, raw in enumerate(entries, start=1):
        entry = raw.strip()
        if not entry or entry.startswith("#"):
            continue
        tenant, colon, key = entry.partition(":")
        if not colon:
            tenant, key = DEFAULT_TENANT, entry
        tenant, key = tenant.strip(), key.strip()
        # The entry itself is never quoted: it holds the key.
        if not _TENANT.fullmatch(tenant) or not _KEY.fullmatch(key):
            raise EnvironmentFault(
                f"entry {number} of {source} is not tenant:key; a tenant is letters, digits, dots, dashes and "
                "underscores (64 at most), a key is printable ASCII without spaces"
            )
        if tenants.setdefault(_digest(key), tenant) != tenant:
            raise EnvironmentFault(
                f"entry {number} of {source} gives {tenant} a key that another tenant has; change one"
            )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
