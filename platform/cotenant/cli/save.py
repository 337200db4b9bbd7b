"""Pictures out of result lines, as files that are named by their jobs.

A result carries its picture in one of four ways: as base64 of the whole reply (a small mockup), as an object in the
store (a large one), as OpenAI's `data` list of base64 pictures, or as an object that holds such a list. Always true: a
file appears whole or not at all, no custom_id leads out of the folder, and two jobs never share a file.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from cotenant.calls import JSON_TYPE
from cotenant.errors import EnvironmentFault, JobError
from cotenant.jobs.endings import output_of, parsed
from cotenant.jobs.model import Identity, digest
from cotenant.jobs.store.keys import batch_prefix
from cotenant.jobs.store.objects import Objects

_SUFFIXES = {"image/png": ".png", "image/jpeg": ".jpg", "image/webp": ".webp"}
_MAGIC = ((b"\x89PNG", ".png"), (b"\xff\xd8\xff", ".jpg"), (b"RIFF", ".webp"))
#: Stands before a hash or a number, and in no stem, so that none of them makes two names one.
_APART = "~"
#: File systems take 255 bytes a name; the rest is for a number, a hash and the suffix.
_MAX_STEM = 200


def safe_names(identities: Iterable[Identity]) -> dict[Identity, str]:
    """A file name without suffix for each job: what is readable of its custom_id, with a hash only where two are alike.

    The same set of jobs gives the same names, so a batch that is saved again meets its own files.
    """
    stems = {identity: _stem(identity.custom_id) for identity in identities}
    alike = Counter(stem.casefold() for stem in stems.values())
    return {
        identity: stem if stem and alike[stem.casefold()] == 1 else f"{stem or 'job'}{_APART}{_hash(identity)}"
        for identity, stem in stems.items()
    }


async def pictures_of(line: bytes, identity: Identity, objects: Objects) -> list[tuple[bytes, str]]:
    """The pictures of one result line, each with its suffix; none if it failed or made something else.

    Raises:
        JobError: the line speaks of an object that is not in the store.
        StoreUnavailable: the store does not answer.
    """
    output = output_of(parsed(line))
    content_type = "" if output is None else output.content_type.split(";")[0].strip().lower()
    if output is None or (content_type not in _SUFFIXES and content_type != JSON_TYPE):
        return []
    data = await _object(output.object_url, identity, objects) if output.object_url is not None else output.data or b""
    if content_type in _SUFFIXES:
        return [(data, _SUFFIXES[content_type])]
    return [(picture, _suffix(picture)) for picture in _listed(data)]


def save(folder: Path, name: str, pictures: Iterable[tuple[bytes, str]]) -> list[Path]:
    """Write a job's pictures into `folder`; further ones of the same job get a number.

    Raises:
        EnvironmentFault: the folder can't be written.
    """
    written = []
    for number, (data, suffix) in enumerate(pictures, start=1):
        path = folder / f"{name}{'' if number == 1 else f'{_APART}{number}'}{suffix}"
        draft = folder / f".{path.name}.{os.getpid()}.tmp"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(data)
            draft.replace(path)
        except OSError as error:
            raise EnvironmentFault(
                f"{path} can't be written: {error.strerror}; name another folder with --save"
            ) from error
        finally:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
        written.append(path)
    return written


async def _object(url: str, identity: Identity, objects: Objects) -> bytes:
    """An output of the job by its URL, wherever the store is reached now. Nothing but the batch's own is read."""
    prefix = f"{batch_prefix(identity.tenant, identity.batch)}/outputs/"
    _, found, rest = url.rpartition(prefix)
    data = await objects.get(prefix + rest) if found and "/" not in rest else None
    if data is None:
        raise JobError(f"{url}, which {identity.custom_id} made, is not in {objects.url}; was it deleted?")
    return data


def _listed(data: bytes) -> list[bytes]:
    """The pictures of an OpenAI image reply; none of another one."""
    if b'"b64_json"' not in data:
        return []
    reply = json.loads(data)
    listed = reply.get("data") if isinstance(reply, dict) else None
    texts = [each.get("b64_json") for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    try:
        return [base64.b64decode(text) for text in texts if isinstance(text, str)]
    except binascii.Error:
        return []


def _suffix(picture: bytes) -> str:
    return next((suffix for magic, suffix in _MAGIC if picture.startswith(magic)), ".bin")


def _stem(custom_id: str) -> str:
    readable = re.sub(r"[^\w.+@=-]+", "-", custom_id, flags=re.ASCII).strip("-.")
    # A job that is called after its artwork would become art.png.png.
    readable = re.sub(r"\.(png|jpe?g|webp)$", "", readable, flags=re.IGNORECASE)
    return readable[:_MAX_STEM].rstrip("-.")


def _hash(identity: Identity) -> str:
    return digest(identity.custom_id.encode())[:12]
