"""Which webhooks are taken at the door: none that could never be sent."""

from __future__ import annotations

from collections.abc import Callable

from cotenant.errors import EnvironmentFault, OutboundError, RequestRefused
from cotenant.outbound.delivery import check_url
from cotenant.outbound.webhooks import Secrets


def webhook_check(secrets: Secrets, trusted: frozenset[str] = frozenset()) -> Callable[[str, str], None]:
    """What refuses a tenant's webhook URL by raising RequestRefused: one that leads inside, or nothing to sign it with.

    `trusted` are hosts that may be inside all the same.
    """

    def check(tenant: str, url: str) -> None:
        try:
            secrets.for_tenant(tenant)
            check_url(url, trusted)
        except (EnvironmentFault, OutboundError) as error:
            raise RequestRefused(str(error), param="webhook_url", code="invalid_webhook") from None

    return check
