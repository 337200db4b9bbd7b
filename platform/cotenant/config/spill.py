"""Where a workload's requests go when the cluster can't take them soon: another server, by HTTP."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from cotenant.config.base import Model

URL_PATTERN = r"^https?://[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?$"
_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"


class Spill(Model):
    """Another cotenant, a Cloud Run service, or any server with the same OpenAI routes."""

    url: str = Field(
        pattern=URL_PATTERN,
        description="The other server, without the route, e.g. https://writer-abc.a.run.app. It may be a private "
        "address; certificates are verified.",
    )
    key_env: str | None = Field(
        None,
        pattern=_VARIABLE,
        description="Environment variable of gateway and ingress with the key that the other server takes.",
    )
    auth: Literal["key", "google"] = Field(
        "key",
        description="google: calls also carry an identity token of this machine's service account, as Cloud Run asks "
        "for. key: the key alone, if there is one.",
    )
    model: str | None = Field(
        None, min_length=1, description="What the other server calls the model (default: as this platform does)."
    )
    after_wait_s: float | None = Field(
        None,
        ge=0,
        le=86_400,
        description="A request that would wait longer than this for a slot here is sent there (default: the workload's "
        "target_wait_s).",
    )
    max_concurrency: int = Field(
        64, ge=1, le=100_000, description="Requests that one gateway has there at once; more wait here."
    )
    jobs: bool = Field(False, description="Send jobs of the ingress there too, not only requests of the gateway.")

    @model_validator(mode="after")
    def _tokens_travel_encrypted(self) -> Self:
        if self.auth == "google" and not self.url.startswith("https://"):
            raise ValueError(
                "has auth: google with an http URL, where anybody on the way could read the token; use https"
            )
        return self
