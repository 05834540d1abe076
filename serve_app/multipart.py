"""Several image files in one body, as forms send them (RFC 7578)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from shifter.errors import RequestError

MULTIPART_TYPE: Final = "multipart/form-data"

# Senders that do not know a file's type say the one or nothing.
_UNKNOWN: Final = ("", "application/octet-stream")
_MOST_HEADERS: Final = 8
_MOST_HEADER_BYTES: Final = 1024


@dataclass
class _Part:
    headers: dict[str, str] = field(default_factory=dict)
    pieces: list[bytes] = field(default_factory=list)


def images_of(body: bytes, content_type: str, types: tuple[str, ...], most: int) -> list[bytes]:
    """The files in ``body``, at least one and in its order; names of fields and files mean nothing.

    Args:
        types: the Content-Types that a part may have.

    Raises:
        RequestError: if it is no such form, has more than ``most`` parts, or one that is no such file.
    """
    parts = _parts(body, content_type, most)
    if not parts:
        raise RequestError("the form holds no part: send each image as a file of it", status=400)
    return [_file(index, part, types) for index, part in enumerate(parts)]


def _parts(body: bytes, content_type: str, most: int) -> list[_Part]:
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not boundary:
        raise RequestError(
            f"the Content-Type {MULTIPART_TYPE} needs a boundary: let the client library write it", status=400
        )
    parts: list[_Part] = []
    name, value = bytearray(), bytearray()
    is_whole = False

    def begin() -> None:
        if len(parts) == most:
            raise RequestError(f"the form has more than {most} parts: at most that many images", status=413)
        parts.append(_Part())

    def end_header() -> None:
        parts[-1].headers[name.decode("latin-1").lower()] = value.decode("latin-1")
        name.clear()
        value.clear()

    def end() -> None:
        nonlocal is_whole
        is_whole = True

    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": begin,
                "on_header_field": lambda data, start, stop: name.extend(data[start:stop]),
                "on_header_value": lambda data, start, stop: value.extend(data[start:stop]),
                "on_header_end": end_header,
                "on_part_data": lambda data, start, stop: parts[-1].pieces.append(data[start:stop]),
                "on_end": end,
            },
            max_header_count=_MOST_HEADERS,
            max_header_size=_MOST_HEADER_BYTES,
        )
        parser.write(body)
    except FormParserError as error:
        raise RequestError(f"the body is not a readable {MULTIPART_TYPE}: {error}", status=400) from error
    if not is_whole:
        raise RequestError(f"the {MULTIPART_TYPE} ends before its last boundary", status=400)
    return parts


def _file(index: int, part: _Part, types: tuple[str, ...]) -> bytes:
    _, about = parse_options_header(part.headers.get("content-disposition", ""))
    kind = part.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in types and (kind not in _UNKNOWN or b"filename" not in about):
        found = f"of the type {kind!r}" if b"filename" in about or kind else "a field and no file"
        raise RequestError(
            f"part {index} of the form is {found}: send files of the types {', '.join(types)} alone",
            status=415,
        )
    return b"".join(part.pieces)
