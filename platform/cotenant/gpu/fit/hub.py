"""The Hugging Face hub over HTTPS: names and sizes of a repository's files, and stretches of them. An edge.

Only metadata is fetched: configs whole, weight files no further than their headers, by ranges. `HF_ENDPOINT`,
`HF_TOKEN` and `HF_HUB_OFFLINE` mean what they mean to the hub's own client; the token goes to the hub only, never
along a redirect. Standard library alone, so that the light install can ask.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping

from cotenant.gpu.fit.folder import LONGEST_JSON, FactsMissing

_TIMEOUT_S = 10.0
_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?$")


class HttpsHub:
    """The hub at `endpoint`."""

    def __init__(self, endpoint: str | None = None, *, token: str | None = None, timeout_s: float = _TIMEOUT_S) -> None:
        self._endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
        self._token = token if token is not None else os.environ.get("HF_TOKEN", "")
        self._timeout_s = timeout_s

    def folder(self, model_id: str) -> HubFolder:
        """A repository. Raises FactsMissing for what is no id, or where the hub must not or can't be asked."""
        if not _ID.match(model_id):
            raise FactsMissing(f"{model_id!r} is neither a folder of this machine nor a hub id; check its spelling")
        if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
            raise FactsMissing(
                f"model {model_id} is not in the hub's cache, and HF_HUB_OFFLINE forbids to ask the hub; unset it, or "
                "name a local folder"
            )
        return HubFolder(self, model_id)

    def get(self, model_id: str, path: str, *, span: tuple[int, int] | None = None, most: int = LONGEST_JSON) -> bytes:
        """At most `most` bytes of an answer. Raises FactsMissing, with what the hub or the network said."""
        url = f"{self._endpoint}/{path}"
        if not url.startswith(("https://", "http://")):
            raise FactsMissing(f"HF_ENDPOINT is {self._endpoint!r}; it needs to be an http(s) URL")
        request = urllib.request.Request(url)  # noqa: S310 - the scheme was looked at
        if span is not None:
            request.add_header("Range", f"bytes={span[0]}-{span[1] - 1}")
        if self._token:
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_s) as answer:  # noqa: S310
                if span is not None and answer.status != http.client.PARTIAL_CONTENT and span[0]:
                    raise FactsMissing(f"the hub sends {path} only whole; download {model_id} and name its folder")
                return bytes(answer.read(most))
        except urllib.error.HTTPError as error:
            raise FactsMissing(self._refused(model_id, error.code)) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise FactsMissing(
                f"model {model_id} is not on this machine, and the hub at {self._endpoint} can't be reached "
                f"({reason}); name a local folder, or give vram_gib as a number"
            ) from None

    def _refused(self, model_id: str, status: int) -> str:
        if status in (401, 403):
            return (
                f"the hub shows {model_id} only to those it was granted to (or there is none of that name); check the "
                "id, accept the model's terms and set HF_TOKEN"
            )
        if status == 404:
            return f"the hub has no {model_id}, or it lacks a file that every model has; check the id"
        return f"the hub at {self._endpoint} answered {status} for {model_id}; try again, or name a local folder"


class HubFolder:
    """A repository of the hub at its main revision."""

    def __init__(self, hub: HttpsHub, model_id: str) -> None:
        self.name = model_id
        self._hub = hub
        self._files: dict[str, int] | None = None

    def files(self) -> Mapping[str, int]:
        if self._files is None:
            data = self._hub.get(self.name, f"api/models/{self.name}/tree/main?recursive=true", most=4 * LONGEST_JSON)
            try:
                entries = json.loads(data)
                self._files = {
                    str(entry["path"]): int(entry["size"]) for entry in entries if entry.get("type") == "file"
                }
            except (ValueError, TypeError, KeyError, AttributeError):
                raise FactsMissing(f"the hub's list of files of {self.name} can't be read; try again") from None
        return self._files

    def read(self, path: str, start: int, length: int) -> bytes:
        end = min(start + length, self.files().get(path, start + length))
        if end <= start:
            return b""
        quoted = urllib.parse.quote(path)
        return self._hub.get(self.name, f"{self.name}/resolve/main/{quoted}", span=(start, end), most=end - start)
