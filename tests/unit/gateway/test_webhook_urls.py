from __future__ import annotations

import base64

import pytest

from cotenant.errors import RequestRefused
from cotenant.gateway.webhook_urls import webhook_check
from cotenant.outbound.webhooks import load_secrets

pytestmark = pytest.mark.unit

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
CHECK = webhook_check(load_secrets({"SECRETS": f"acme:{SECRET}"}, "SECRETS"), frozenset({"hooks.inside"}))


@pytest.mark.parametrize("url", ["https://example.com/hook", "http://hooks.inside/hook"])
def test_a_url_that_can_be_called_is_taken(url: str) -> None:
    CHECK("acme", url)


@pytest.mark.parametrize(
    ("tenant", "url", "says"),
    [
        ("other", "https://example.com/hook", "tenant other has no webhook secret"),
        ("acme", "http://example.com/hook", "https"),
        ("acme", "https://127.0.0.1/hook", "public"),
        ("acme", "https://user:s3cret@example.com/hook", "user"),
        ("acme", "nonsense", "URL"),
    ],
)
def test_a_webhook_that_could_never_be_sent_is_refused_when_it_is_asked_for(tenant: str, url: str, says: str) -> None:
    with pytest.raises(RequestRefused, match=says) as refused:
        CHECK(tenant, url)
    assert (refused.value.status, refused.value.param) == (400, "webhook_url")
    assert "s3cret" not in str(refused.value)
