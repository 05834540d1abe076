import io
import struct
import zipfile

import pytest

from shifter.errors import PackageError
from shifter.portfolio import container
from shifter.portfolio.container import Entry

ENTRIES = [Entry.pack("manifest.json", b"{}" * 50), Entry.pack("a/b.bin", b""), Entry.pack("a/c.bin", b"xyz")]


def test_entries_come_back_in_order_with_their_bytes() -> None:
    back = container.read(container.write(ENTRIES))
    assert list(back) == [entry.name for entry in ENTRIES]
    for entry in ENTRIES:
        found = back[entry.name]
        assert (bytes(found.stream), found.size, found.crc) == (entry.stream, entry.size, entry.crc)


@pytest.mark.parametrize(
    "name", ["../a", "a/../b", "/a", "a//b", "a/", "", "..", ".hidden", "a\\b", "C:a", "a\nb", "é", "a/./b"]
)
def test_no_entry_has_a_name_that_leads_elsewhere(name: str) -> None:
    with pytest.raises(PackageError, match="cannot name an entry"):
        Entry.pack(name, b"")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo(name or "x"), b"content")
    with pytest.raises(PackageError):
        container.read(buffer.getvalue())


def test_a_name_with_dots_that_reached_the_bytes_is_refused() -> None:
    data = container.write(ENTRIES).replace(b"a/b.bin", b"../.bin")
    with pytest.raises(PackageError, match="cannot name an entry"):
        container.read(data)


def test_two_entries_of_one_name_are_refused() -> None:
    with pytest.raises(PackageError, match=r"'a/c\.bin'"):
        container.write([*ENTRIES, ENTRIES[-1]])
    with pytest.raises(PackageError, match=r"two entries are called 'a/c\.bin'"):
        container.read(container.write(ENTRIES).replace(b"a/b.bin", b"a/c.bin"))


def test_bytes_that_belong_to_no_entry_are_refused() -> None:
    data = container.write(ENTRIES)
    end = len(data) - 22
    start = struct.unpack_from("<L", data, end + 16)[0]
    between = (
        data[:start]
        + b"hidden"
        + data[start:end]
        + data[end:].replace(struct.pack("<L", start), struct.pack("<L", start + 6))
    )
    for stuffed in (b"MZ" + data, data + b"\0", between, data[:end] + b"hidden" + data[end:]):
        with pytest.raises(PackageError):
            container.read(stuffed)


def test_a_directory_that_leaves_out_or_invents_entries_is_refused() -> None:
    data = container.write(ENTRIES)
    end = len(data) - 22
    for count in (0, 2, 4, 0xFFFF):
        counted = data[: end + 8] + struct.pack("<2H", count, count) + data[end + 12 :]
        with pytest.raises(PackageError):
            container.read(counted)
