"""The package's container: an ordinary ZIP, written and read in one strict layout.

Any unzip opens what `write` makes. `read` opens only that layout: entries deflated, back to back
from the first byte, the directory after them, nothing before, between or behind. That leaves no
room for what makes ZIP readers disagree (overlapping or hidden entries, second names, data
descriptors), and the standard library's ``zipfile`` can neither insist on it nor store entries
that are already deflated. Fixed time stamps: the same entries give the same bytes.

Layout: PKWARE's APPNOTE.TXT, 4.3.7 (local header), 4.3.12 (directory), 4.3.16 (its end).
"""

from __future__ import annotations

import re
import struct
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shifter.errors import PackageError
from shifter.portfolio.deflating import deflate

_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s4B4H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_VERSION, _UNIX, _DEFLATED, _PLAIN_FILE = 20, 3, 8, 0o100644 << 16
_TIME, _DATE = 0, 0x21  # 1980-01-01, the first day that a ZIP can name
_MOST_ENTRIES, _MOST_BYTES = 0xFFFE, 0xFFFF_FFFE  # beyond these a ZIP needs the ZIP64 extension
_LONGEST_NAME = 255
# Relative, without '..', and valid on every file system.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")


@dataclass(frozen=True)
class Entry:
    """One file of a container: its deflated bytes, and its size and CRC-32 when inflated."""

    name: str
    stream: bytes | memoryview
    size: int
    crc: int

    def __post_init__(self) -> None:
        if len(self.name) > _LONGEST_NAME or not _NAME.fullmatch(self.name):
            raise PackageError(
                f"{self.name[:_LONGEST_NAME]!r} cannot name an entry: letters, digits, '.', '_', '-', "
                f"folders separated by '/', none of them beginning with '.'; {_LONGEST_NAME} at most"
            )

    @classmethod
    def pack(cls, name: str, content: bytes, noise: int = 0) -> Entry:
        """Deflates ``content``, whose first ``noise`` bytes are noise (`shifter.portfolio.deflating`)."""
        return cls(name, deflate(content, noise), len(content), zlib.crc32(content))

    def local_header(self) -> bytes:
        return _LOCAL.pack(b"PK\3\4", _VERSION, *self._common(), 0) + self.name.encode()

    def central_header(self, offset: int) -> bytes:
        made_by = (_VERSION, _UNIX, _VERSION, 0)
        header = _CENTRAL.pack(b"PK\1\2", *made_by, *self._common(), 0, 0, 0, 0, _PLAIN_FILE, offset)
        return header + self.name.encode()

    def _common(self) -> tuple[int, ...]:
        sizes = (self.crc, len(self.stream), self.size)
        return (0, _DEFLATED, _TIME, _DATE, *sizes, len(self.name))


def write(entries: Sequence[Entry]) -> bytes:
    """The container's bytes, entries in the given order.

    Raises:
        PackageError: if two entries share a name, or a plain ZIP cannot hold them.
    """
    if repeated := [name for name, count in Counter(entry.name for entry in entries).items() if count > 1]:
        raise PackageError(f"two entries are called {repeated[0]!r}")
    parts: list[bytes | memoryview] = []
    directory: list[bytes] = []
    offset = 0
    for entry in entries:
        header = entry.local_header()
        directory.append(entry.central_header(offset))
        parts += [header, entry.stream]
        offset += len(header) + len(entry.stream)
    length = sum(map(len, directory))
    if len(entries) > _MOST_ENTRIES or offset + length > _MOST_BYTES:
        raise PackageError(
            f"{len(entries)} entries of {offset + length} bytes do not fit a package: "
            f"at most {_MOST_ENTRIES} entries and {_MOST_BYTES} bytes"
        )
    count = len(entries)
    end = _END.pack(b"PK\5\6", 0, 0, count, count, length, offset, 0)
    return b"".join([*parts, *directory, end])


def read(data: bytes) -> Mapping[str, Entry]:
    """The entries of a container by name, in their order; nothing is inflated or copied.

    Raises:
        PackageError: if ``data`` is not laid out as `write` lays it out.
    """
    whole = memoryview(data)
    if len(data) < _END.size:
        raise PackageError(f"{len(data)} bytes are no package: truncated, or not a ZIP file")
    end = len(data) - _END.size
    count, length, start = struct.unpack_from("<H2L", data, end + 10)
    if data[end:] != _END.pack(b"PK\5\6", 0, 0, count, count, length, start, 0) or start + length != end:
        raise PackageError(
            "the package does not end with the directory of a ZIP file as the packer writes it: "
            "it is truncated, damaged, or was rewritten by another tool"
        )
    entries: dict[str, Entry] = {}
    position, offset = start, 0
    for index in range(count):
        entry, position = _read_entry(whole, index, position, end, offset, start)
        if entry.name in entries:
            raise PackageError(f"two entries are called {entry.name!r}")
        entries[entry.name] = entry
        offset += len(entry.local_header()) + len(entry.stream)
    if (position, offset) != (end, start):
        raise PackageError("the package holds bytes that belong to none of its entries")
    return entries


def _read_entry(
    whole: memoryview, index: int, position: int, end: int, offset: int, start: int
) -> tuple[Entry, int]:
    """The entry whose directory record is at ``position`` and whose data is due at ``offset``."""
    damaged = PackageError(f"entry {index} is damaged, or was rewritten by another tool")
    if position + _CENTRAL.size > end:
        raise damaged
    crc, deflated, size, name_length = struct.unpack_from("<3LH", whole, position + 16)
    begin = offset + _LOCAL.size + name_length
    name_end = position + _CENTRAL.size + name_length
    if name_end > end or begin + deflated > start:
        raise damaged
    try:
        name = bytes(whole[position + _CENTRAL.size : name_end]).decode("ascii")
    except UnicodeDecodeError:
        raise damaged from None
    entry = Entry(name, whole[begin : begin + deflated], size, crc)
    # One comparison for every field: both headers are exactly what `write` makes of this entry.
    found = (bytes(whole[offset:begin]), bytes(whole[position:name_end]))
    if found != (entry.local_header(), entry.central_header(offset)):
        raise damaged
    return entry, name_end
