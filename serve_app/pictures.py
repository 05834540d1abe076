"""Image files brought down to what their pixels need, before a decoder sees them.

A decoder written for photographs reads profiles, texts, thumbnails, animations and comments too, each a
way to make it work or remember without end. None of it changes a pixel here, so it is left out unread.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Final, Literal

from shifter.errors import RequestError

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT: Final = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"))
_JPEG: Final = b"\xff\xd8\xff"
_APP1, _COMMENT, _SCAN, _END = 0xE1, 0xFE, 0xDA, 0xD9
# JFIF's and Adobe's segments say how colours are coded; the other applications' say nothing of pixels.
_DROPPED: Final = frozenset((*range(0xE1, 0xEE), 0xEF, _COMMENT))
_FRAMES: Final = frozenset((*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)))
# A marker; within a scan, 0xFF is followed by 0 where it is data, and by 0xD0…0xD7 between intervals.
_MARKER: Final = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)

MOST_SCANS: Final = 64
"""Of a progressive JPEG. Encoders write about ten; each costs a pass over the whole image."""


@dataclass(frozen=True)
class Picture:
    """A file of pixels alone.

    Args:
        orientation: as EXIF counts, 1…8; 1 is upright.
        scans: passes over all pixels that decoding takes, at most.
    """

    kind: Literal["PNG", "JPEG"]
    content: bytes
    orientation: int = 1
    scans: int = 1


def strip(body: bytes) -> Picture:
    """The picture in ``body``.

    Raises:
        RequestError: if it is neither PNG nor JPEG, or has more parts than any encoder writes.
    """
    if body.startswith(_PNG):
        return _png(body)
    if body.startswith(_JPEG):
        return _jpeg(body)
    raise RequestError("the body is not a PNG or JPEG image", status=400)


def _png(body: bytes) -> Picture:
    kept, at, orientation = [_PNG], len(_PNG), 1
    most = _most_parts(body)
    for _ in range(most):
        if at + 8 > len(body):
            break
        length, kind = struct.unpack_from(">I4s", body, at)
        if kind in _PNG_KEPT:
            kept.append(body[at : at + 12 + length])  # with its checksum; a cut-off one as far as it goes
        elif kind == b"eXIf":
            orientation = _orientation(body[at + 8 : at + 8 + length])
        at += 12 + length
        if kind == b"IEND":
            break
    else:
        raise RequestError(f"the PNG has more than {most} chunks: write larger ones", status=400)
    return Picture("PNG", b"".join(kept), orientation)


def _jpeg(body: bytes) -> Picture:
    kept, at, orientation = [body[:2]], 2, 1
    scans, frames = 0, 0
    most = _most_parts(body)
    for _ in range(most):
        found = _MARKER.search(body, at)
        begin = found.start() if found else len(body)
        if scans:
            kept.append(body[at:begin])  # the scan's data
        code = found[1][0] if found else _END
        if found is None or code == _END:
            break
        at = found.end()
        if code == 0x01:  # stands alone, and means nothing
            continue
        length = struct.unpack_from(">H", body, at)[0] if at + 2 <= len(body) else 0
        segment = body[at : at + length]
        at += length
        if code == _APP1 and segment[2:8] == b"Exif\0\0":
            orientation = _orientation(segment[8:])
        if code in _DROPPED:
            continue
        kept += (bytes((0xFF, code)), segment)
        scans += code == _SCAN
        frames += code in _FRAMES
        if scans > MOST_SCANS:
            raise RequestError(
                f"the JPEG has more than {MOST_SCANS} scans: send it with fewer, or as baseline", status=400
            )
        if frames > 1:
            raise RequestError("the JPEG holds more than one frame: send one image in one file", status=400)
    else:
        raise RequestError(f"the JPEG has more than {most} segments: leave out its metadata", status=400)
    return Picture("JPEG", b"".join((*kept, b"\xff\xd9" if found else b"")), orientation, max(1, scans))


def _most_parts(body: bytes) -> int:
    """Chunks or segments; encoders write some of 8 KiB and more."""
    return 1000 + len(body) // 1024


def _orientation(exif: bytes) -> int:
    """Of a TIFF header and its first directory; upright, where they say nothing that is known."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(f"{order}L", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, directory)
        for entry in range(entries):
            tag, kind, _, value = struct.unpack_from(f"{order}HHLH", exif, directory + 2 + 12 * entry)
            if tag == 0x0112:
                return value if kind == 3 and 1 <= value <= 8 else 1
    except struct.error:
        pass  # it ends before it said so
    return 1
