"""A file that comes as a form, handed on as it comes: never whole in memory, never on a disk.

Whoever takes the file's chunks drives the reading of the request, so a slow store slows the client and nothing piles
up between them. The chunks end only when the whole form was read and was in order; whatever is wrong with it is
raised out of them before that, so who keeps a file only when its chunks have ended keeps none of a broken upload.

Clients differ in what they send first (OpenAI's for Python the purpose, those for other languages often the file).
What begins with the file is held until the rest is known, up to `HELD_BYTES`; a longer one is taken for a batch's
file that expires when those do, which most are, and refused at its end if the form turns out to say otherwise.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from cotenant.calls import Reply, error_reply
from cotenant.gateway.answers import ClientGone, Refused
from cotenant.gateway.bodies import MULTIPART, media_type

#: The largest file that is taken, as OpenAI has it. Some purposes have a smaller limit of their own.
MAX_FILE_BYTES = 512 << 20
#: How much of a file is held while its purpose is not known.
HELD_BYTES = 1 << 20
ASSUMED_PURPOSE = "batch"

FILE = "file"
_EXPIRES = "expires_after["
_MAX_PARTS = 64
_MAX_FIELD_BYTES = 4096
_MAX_FILENAME = 255
#: What a form may be longer than its file.
_FORM_BYTES = 1 << 20


@dataclass(frozen=True)
class Upload:
    """A file that is being uploaded. `assumed` says that the form has not told its purpose yet.

    `expires_after` is what the form's fields `expires_after[…]` say, as text.
    """

    filename: str
    purpose: str
    chunks: AsyncGenerator[bytes, None]
    expires_after: dict[str, str] | None = None
    assumed: bool = False


async def open_upload(request: Request, *, limit_bytes: int = MAX_FILE_BYTES, held_bytes: int = HELD_BYTES) -> Upload:
    """The file in the form that `request` brings, its body read up to where the file begins.

    Taking its chunks reads the rest, and raises Refused and ClientGone as this does.

    Raises:
        Refused: 400, 413 or 415, with what to send instead.
        ClientGone: the client left.
    """
    form = _Form(request, limit_bytes)
    fields: dict[str, str] = {}
    part = await form.fields_before(FILE, fields)
    if part is None:
        raise Refused(_missing(FILE, "has no file", "send it as a form field named file"))
    filename = _filename(part)
    if "purpose" in fields:
        return Upload(filename, fields["purpose"], _rest(form, [], dict(fields)), _expiry(fields))
    held, whole = await form.hold(held_bytes)
    if not whole:
        assumed = {**fields, "purpose": ASSUMED_PURPOSE}
        return Upload(filename, ASSUMED_PURPOSE, _rest(form, held, assumed), _expiry(fields), assumed=True)
    await form.end(fields)
    if "purpose" not in fields:
        raise Refused(_missing("purpose", "has no purpose", 'send one, such as "batch"'))
    return Upload(filename, fields["purpose"], _held(held), _expiry(fields))


async def _rest(form: _Form, held: list[bytes], taken: dict[str, str]) -> AsyncGenerator[bytes, None]:
    """What is left of the file. Its form must not end with anything else than what was `taken` of its fields."""
    for first in held:
        yield first
    while (chunk := await form.data()) is not None:
        yield chunk
    later: dict[str, str] = {}
    await form.end(later)
    if held and "purpose" not in later:
        raise Refused(_missing("purpose", "has no purpose", "send one, before the file"))
    for name in ("purpose", *(name for name in later if name.startswith(_EXPIRES))):
        if later.get(name, taken.get(name)) != taken.get(name):
            text = f"the form has {name[:64]} behind its file, too late to be heeded; send it before"
            raise Refused(error_reply(400, text, param=name[:64], code="field_after_file"))


def _expiry(fields: dict[str, str]) -> dict[str, str] | None:
    found = {name[len(_EXPIRES) : -1]: value for name, value in fields.items() if name.startswith(_EXPIRES)}
    return found or None


async def _held(chunks: list[bytes]) -> AsyncGenerator[bytes, None]:
    for chunk in chunks:
        yield chunk


@dataclass
class _Part:
    """The head of one part: its headers, by lower-case name."""

    headers: dict[bytes, bytes] = field(default_factory=dict)

    @property
    def options(self) -> dict[bytes, bytes]:
        return parse_options_header(self.headers.get(b"content-disposition", b"").decode("latin-1"))[1]

    @property
    def name(self) -> str:
        return self.options.get(b"name", b"").decode(errors="replace")


class _End:
    """The end of a part."""


class _Form:
    """The parts of a form in the order they come, read from the request when they are asked for."""

    def __init__(self, request: Request, limit_bytes: int) -> None:
        headers = request.headers
        if media_type(headers) != MULTIPART:
            have = media_type(headers) or "missing"
            raise Refused(error_reply(415, f"the Content-Type is {have}; send {MULTIPART} with purpose and file"))
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise Refused(error_reply(415, "compressed forms are not accepted; send it without Content-Encoding"))
        declared = headers.get("content-length", "")
        if declared.isdigit() and int(declared) > limit_bytes + _FORM_BYTES:
            raise Refused(_too_large(limit_bytes))
        self._receive = request.receive
        self._limit_bytes = limit_bytes
        self._file_bytes = 0
        self._parts = 0
        self._found: deque[_Part | bytes | _End] = deque()
        self._part = _Part()
        self._header = (bytearray(), bytearray())
        self._read = self._whole = False
        boundary = parse_options_header(headers["content-type"])[1].get(b"boundary", b"")
        if not boundary:
            raise Refused(error_reply(400, "the form's Content-Type names no boundary; let an HTTP library write it"))
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begins,
                    "on_part_data": lambda data, start, end: self._found.append(data[start:end]),
                    "on_part_end": lambda: self._found.append(_End()),
                    "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
                    "on_header_end": self._header_ends,
                    "on_headers_finished": lambda: self._found.append(self._part),
                    "on_end": self._ends,
                },
            )
        except FormParserError as error:
            raise Refused(_unreadable(error)) from None

    async def fields_before(self, name: str, fields: dict[str, str]) -> _Part | None:
        """The part called `name`, the texts of those before it put into `fields`; None if there is no such part."""
        while (found := await self._next()) is not None:
            if not isinstance(found, _Part):
                continue
            self._parts += 1
            if self._parts > _MAX_PARTS:
                raise Refused(error_reply(400, f"the form has more than {_MAX_PARTS} fields; send purpose and file"))
            if found.name == name:
                return found
            fields.setdefault(found.name, await self._text(found.name))
        return None

    async def data(self) -> bytes | None:
        """The next bytes of the file; None at its end."""
        found = await self._next()
        if not isinstance(found, bytes):
            return None
        self._file_bytes += len(found)
        if self._file_bytes > self._limit_bytes:
            raise Refused(_too_large(self._limit_bytes))
        return found

    async def hold(self, limit_bytes: int) -> tuple[list[bytes], bool]:
        """The file's first bytes, some `limit_bytes` at the most, and whether that was all of it."""
        held: list[bytes] = []
        size = 0
        while size <= limit_bytes:
            chunk = await self.data()
            if chunk is None:
                return held, True
            held.append(chunk)
            size += len(chunk)
        return held, False

    async def end(self, fields: dict[str, str]) -> None:
        """Read what comes after the file."""
        if await self.fields_before(FILE, fields) is not None:
            raise Refused(error_reply(400, "the form has two files; send one at a time", param=FILE))

    async def _text(self, name: str) -> str:
        text = bytearray()
        while isinstance(found := await self._next(), bytes):
            text += found
            if len(text) > _MAX_FIELD_BYTES:
                limit = f"the form's field {name[:64]!r} is over {_MAX_FIELD_BYTES} bytes; send purpose and file"
                raise Refused(error_reply(400, limit, param=name[:64]))
        return text.decode(errors="replace").strip()

    async def _next(self) -> _Part | bytes | _End | None:
        while not self._found:
            if self._read:
                if not self._whole:
                    raise Refused(error_reply(400, "the form ends in the middle; send it whole"))
                return None
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            self._read = not message.get("more_body", False)
            try:
                self._parser.write(message.get("body", b""))
            except FormParserError as error:
                raise Refused(_unreadable(error)) from None
        return self._found.popleft()

    def _begins(self) -> None:
        self._part = _Part()

    def _header_ends(self) -> None:
        name, value = self._header
        self._part.headers[bytes(name).lower()] = bytes(value)
        self._header = (bytearray(), bytearray())

    def _ends(self) -> None:
        self._whole = True


def _filename(part: _Part) -> str:
    """What the client calls the file, without folders and what can't be printed."""
    name = part.options.get(b"filename", b"").decode(errors="replace").replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(filter(str.isprintable, name)).strip()[:_MAX_FILENAME] or "upload"


def _missing(name: str, have: str, then: str) -> Reply:
    return error_reply(400, f"the form {have}; {then}", param=name, code="missing_required_parameter")


def _unreadable(error: FormParserError) -> Reply:
    return error_reply(400, f"the form can't be read: {error}")


def _too_large(limit_bytes: int) -> Reply:
    text = f"the file is over {round(limit_bytes / 2**20, 2):g} MiB, the most that is taken; split it"
    return error_reply(413, text, param=FILE, code="file_too_large")
