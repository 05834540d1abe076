"""A store's place in a bucket of S3-compatible storage: a key is an object, there once it is whole."""

from __future__ import annotations

import base64
import errno
import hashlib
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from shifter.errors import StoreError
from shifter.place import Patiently
from shifter.s3 import request, translated

PART = 64 * 2**20
"""Most bytes sent at once; what is larger goes in parts, each tried again by itself. S3: 5 MiB to 5 GiB."""
_TAIL = 2**16
"""Bytes fetched when a key is opened: the last ones, where Arrow and ZIP files say what is where."""
_CHUNK = 2**20


@dataclass(frozen=True)
class Bucket:
    """The objects of a bucket below a prefix, which ends in ``/`` or is empty.

    Servers differ in what a conditional write is worth: some refuse it, some ignore it, some let
    several of those through that race. So a key is looked up before it is written, the condition is
    asked for where it is understood, and nobody relies on it (``exclusive``).
    """

    bucket: str
    prefix: str = ""

    exclusive: ClassVar[bool] = False
    read_ahead: ClassVar[int] = _TAIL

    @classmethod
    def at(cls, uri: str) -> Bucket:
        """Raises StoreError if ``uri`` is not ``s3://bucket`` or ``s3://bucket/prefix``."""
        found = re.fullmatch(r"s3://([A-Za-z0-9][A-Za-z0-9._-]+)((?:/[^/]+)*)/?", uri, re.IGNORECASE)
        if found is None or any(part.startswith(".") for part in found[2].split("/")):
            raise StoreError(f"the store {uri!r} cannot be used: give s3://bucket or s3://bucket/prefix")
        return cls(found[1], found[2][1:] + "/" if found[2] else "")

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def probe(self, patiently: Patiently) -> None:
        """Lists, writes, reads and deletes an object whose name is no key.

        Raises:
            OSError: the last that ``patiently`` raised; nothing is left behind if that can be.
        """
        name = f".probe-{uuid.uuid4().hex}"  # hidden, so that it is no key
        probe = _Draft(self, name, b"shifter")
        try:
            # First what says most of what is wrong.
            patiently(partial(self._request, "list_objects_v2", Prefix=self.prefix + name))
            patiently(probe.create)
            patiently(partial(self.open, name))
            patiently(partial(self.delete, name))
        except OSError:
            with suppress(OSError):
                self.delete(name)
            raise

    @contextmanager
    def draft(self, key: str, data: bytes, patiently: Patiently) -> Iterator[_Draft]:
        """What is large is at the server already, in parts that are no object yet; else nothing is."""
        if len(data) <= PART:
            yield _Draft(self, key, data)
            return
        upload = patiently(partial(self._object, "create_multipart_upload", key))["UploadId"]
        ended = False
        try:
            pieces = [data[start : start + PART] for start in range(0, len(data), PART)]
            tags = [
                patiently(partial(self._send_part, key, upload, number, piece))
                for number, piece in enumerate(pieces, 1)
            ]
            draft = _Parts(self, key, data, upload, tags)
            yield draft
            ended = draft.ended
        finally:
            if not ended:
                with suppress(OSError):  # else it is swept later
                    self._abort(key, upload)

    def open(self, key: str) -> _OpenObject:
        """Raises FileNotFoundError if there is no such key; fetches its last bytes."""
        return _OpenObject(self, key)

    def exists(self, key: str) -> bool:
        return self.described(key) is not None

    def version(self, key: str) -> str:
        """Its ETag, by one request without a body."""
        return _tag(self._object("head_object", key))

    def list(self, prefix: str, patiently: Patiently) -> Iterator[str]:
        """One request per page of names, as many as the server likes (S3: 1,000)."""
        more: dict[str, str] = {}
        while True:
            page = patiently(partial(self._request, "list_objects_v2", Prefix=self.prefix + prefix, **more))
            yield from (found["Key"].removeprefix(self.prefix) for found in page.get("Contents", []))
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def delete(self, key: str) -> None:
        with suppress(FileNotFoundError):
            self._object("delete_object", key)

    def litter(self, folder: str, patiently: Patiently) -> Iterator[tuple[str, Callable[[], None]]]:
        """Uploads in parts that nobody will end."""
        more: dict[str, str] = {}
        while True:
            page = patiently(partial(self._uploads, self.prefix + (folder and f"{folder}/"), more))
            for found in page.get("Uploads", []):
                name = found["Key"].removeprefix(self.prefix)
                yield name, partial(self._abort, name, found["UploadId"])
            if not page.get("IsTruncated"):
                return
            more = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def described(self, key: str) -> tuple[int, str] | None:
        """Size and ETag of an object; None if there is none."""
        try:
            answer = self._object("head_object", key)
        except FileNotFoundError:
            return None
        return answer["ContentLength"], _tag(answer)

    def holds(self, key: str, data: bytes, tag: str) -> bool:
        """Whether the object is just these bytes; they are read only if its ETag is not ``tag``."""
        found = self.described(key)
        if found is None or found[0] != len(data):
            return False
        if found[1] == tag:
            return True
        # Encrypted, sent in parts of another size, or other bytes.
        left = memoryview(data)
        answer = self.fetch(key)
        with translated(self.bucket), closing(answer["Body"]) as body:
            while chunk := body.read(_CHUNK):
                if left[: len(chunk)] != chunk:
                    return False
                left = left[len(chunk) :]
        return not left

    def send(self, key: str, data: bytes, **condition: str) -> None:
        """Makes one object of ``data`` in one request.

        Args:
            condition: ``IfNoneMatch="*"``, if there must be none yet.

        Raises:
            OSError: FileExistsError where the condition does not hold.
        """
        self._object("put_object", key, Body=data, ContentMD5=_base64(_md5(data)), **condition)

    def end(self, key: str, upload: str, tags: Sequence[str], **condition: str) -> None:
        """Makes one object of the parts that were sent, whose ETags are ``tags``; else as :meth:`send`."""
        parts = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(tags, 1)]
        whole = {"Parts": parts}
        self._object("complete_multipart_upload", key, UploadId=upload, MultipartUpload=whole, **condition)

    def fetch(self, key: str, span: str = "") -> dict[str, Any]:
        """The answer to reading an object, or a span of its bytes as HTTP writes it."""
        return self._object("get_object", key, **({"Range": f"bytes={span}"} if span else {}))

    def _send_part(self, key: str, upload: str, number: int, piece: bytes) -> str:
        about = {"UploadId": upload, "PartNumber": number, "ContentMD5": _base64(_md5(piece))}
        return str(self._object("upload_part", key, Body=piece, **about)["ETag"])

    def _uploads(self, prefix: str, more: dict[str, str]) -> dict[str, Any]:
        try:
            return self._request("list_multipart_uploads", Prefix=prefix, **more)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EOPNOTSUPP):
                return {}  # a right of its own, which few are given: then the bucket's rules clear them
            raise

    def _abort(self, key: str, upload: str) -> None:
        with suppress(FileNotFoundError):
            self._object("abort_multipart_upload", key, UploadId=upload)

    def _object(self, operation: str, key: str, **arguments: Any) -> dict[str, Any]:
        return self._request(operation, Key=self.prefix + key, **arguments)

    def _request(self, operation: str, **arguments: Any) -> dict[str, Any]:
        return request(operation, Bucket=self.bucket, **arguments)


class _Draft:
    """Bytes that are sent when they get their key."""

    def __init__(self, bucket: Bucket, key: str, data: bytes) -> None:
        self._bucket, self._key, self._data = bucket, key, data
        self._tag = _md5(data).hex()

    def create(self) -> None:
        if self._bucket.exists(self._key):
            self._require_own(FileExistsError(errno.EEXIST, "it holds other bytes"))
            return
        try:
            self._send(IfNoneMatch="*")
        except FileExistsError as error:
            self._require_own(error)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
            self._send()  # a server that knows no such condition; or else it says what is wrong
        self._verify()

    def replace(self) -> None:
        try:
            self._send()
        except FileNotFoundError as error:
            # The parts are gone, if they were made one object though it was said to have failed.
            self._require_own(error)
        self._verify()

    def settle(self) -> None:
        """An object that is there stays."""

    def _send(self, **condition: str) -> None:
        self._bucket.send(self._key, self._data, **condition)

    def _verify(self) -> None:
        self._require_own(OSError(errno.EIO, "what was written is not what is read back"))

    def _require_own(self, otherwise: OSError) -> None:
        if not self._bucket.holds(self._key, self._data, self._tag):
            raise otherwise


class _Parts(_Draft):
    """Bytes that were sent in parts."""

    def __init__(self, bucket: Bucket, key: str, data: bytes, upload: str, tags: Sequence[str]) -> None:
        super().__init__(bucket, key, data)
        self._upload, self._tags, self.ended = upload, tags, False
        digests = b"".join(_md5(data[start : start + PART]) for start in range(0, len(data), PART))
        self._tag = f"{_md5(digests).hex()}-{len(tags)}"

    def _send(self, **condition: str) -> None:
        self._bucket.end(self._key, self._upload, self._tags, **condition)
        self.ended = True


class _OpenObject:
    """An object whose last bytes are here already; a small one is whole in them."""

    def __init__(self, bucket: Bucket, key: str) -> None:
        self._bucket, self._key, self._tail = bucket, key, b""
        try:
            answer = bucket.fetch(key, f"-{_TAIL}")
        except OSError as error:
            described = bucket.described(key) if error.errno == errno.ERANGE else None
            if described is None:
                raise
            self.size, self.version = described  # empty, so that no byte of it can be asked for
        else:
            with translated(bucket.bucket), closing(answer["Body"]) as body:
                self._tail = body.read()
            self.version = _tag(answer)
            self.size = int(answer.get("ContentRange", f"/{len(self._tail)}").rpartition("/")[2])

    def read_into(self, position: int, buffer: memoryview) -> int:
        """Reads from ``position`` on; returns how many bytes, fewer than asked where an answer was cut off.

        Raises:
            OSError: ESTALE if the object was replaced since it was opened; EOPNOTSUPP if the server
                answers with other bytes than it was asked for.
        """
        tail_at = self.size - len(self._tail)
        if position >= tail_at:
            found = self._tail[position - tail_at :][: len(buffer)]
            buffer[: len(found)] = found
            return len(found)
        end = min(position + len(buffer), tail_at)
        answer = self._bucket.fetch(self._key, f"{position}-{end - 1}")
        with closing(answer["Body"]) as body:
            if _tag(answer) != self.version:
                raise OSError(errno.ESTALE, "it was replaced")
            if not answer.get("ContentRange", "").startswith(f"bytes {position}-"):
                raise OSError(errno.EOPNOTSUPP, "the server does not answer with the bytes asked for")
            return self._receive(body, buffer[: end - position])

    def close(self) -> None:
        """Nothing is held open between two reads."""

    def _receive(self, body: Any, buffer: memoryview) -> int:
        filled = 0
        try:
            with translated(self._bucket.bucket):
                while filled < len(buffer) and (chunk := body.read(min(_CHUNK, len(buffer) - filled))):
                    buffer[filled : filled + len(chunk)] = chunk
                    filled += len(chunk)
        except OSError:
            if filled == 0:
                raise
        return filled  # of an answer that was cut off, what came of it


def _tag(answer: dict[str, Any]) -> str:
    return str(answer.get("ETag", "")).strip('"')


def _md5(data: bytes) -> bytes:
    """What S3 checks bytes by on their way, and usually shows as the ETag."""
    return hashlib.md5(data, usedforsecurity=False).digest()


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()
