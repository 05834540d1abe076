"""Requests to storage that speaks S3, by boto3; what goes wrong with them, as an OSError.

Endpoint, region and credentials are found by the AWS SDK's own means (environment, profiles, roles).
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ReadTimeoutError,
    SSLError,
)
from botocore.exceptions import ConnectionError as NoConnectionError
from botocore.parsers import ResponseParserError

_TIMES_OUT_S = 20
"""Without a byte; short, since a lease's heartbeat goes the same way."""
_CONNECTIONS = 32
_BUSY_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_BUSY_CODES = frozenset(
    {
        *("BadDigest", "ConditionalRequestConflict", "IncompleteBody", "InternalError", "OperationAborted"),
        *("RequestTimeout", "ServiceUnavailable", "SlowDown", "Throttling", "XAmzContentSHA256Mismatch"),
    }
)
"""What passes, some of it under a status that does not say so."""
_NUMBERS = {
    404: errno.ENOENT,
    405: errno.EOPNOTSUPP,
    412: errno.EEXIST,
    416: errno.ERANGE,
    501: errno.EOPNOTSUPP,
}
_ELSEWHERE = frozenset({"AuthorizationHeaderMalformed", "IllegalLocationConstraintException"})


def request(operation: str, **arguments: Any) -> dict[str, Any]:
    """One request, tried once; ``operation`` and ``arguments`` are those of boto3's S3 client.

    Raises:
        OSError: with an errno that tells what may pass (``shifter.patience``) from what may not:
            ENOENT there is no such key or upload, EEXIST a condition does not hold, ERANGE no such
            bytes, EOPNOTSUPP and EINVAL the server will not do this.
    """
    with translated(arguments.get("Bucket", "")):
        answer: dict[str, Any] = getattr(client(), operation)(**arguments)
        return answer


def client() -> Any:
    """One for this process and its AWS settings: making one takes a while, and threads may share it."""
    settings = sorted(item for item in os.environ.items() if item[0].startswith("AWS_"))
    return _client(os.getpid(), tuple(settings))


@functools.lru_cache(maxsize=4)
def _client(process: int, settings: tuple[tuple[str, str], ...]) -> Any:
    session = boto3.Session()
    config = Config(
        connect_timeout=_TIMES_OUT_S / 2,
        read_timeout=_TIMES_OUT_S,
        max_pool_connections=_CONNECTIONS,
        retries={"total_max_attempts": 1},  # the store's patience is enough
        # Newer checksums travel in a way that many servers do not understand; MD5 all of them do.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    try:
        made = session.client("s3", config=config)
    except ValueError as error:
        raise OSError(errno.EINVAL, f"{_sentence(error)}: AWS_ENDPOINT_URL_S3 should be a URL") from error
    host = urlsplit(made.meta.endpoint_url).hostname or ""
    if not host.endswith((".amazonaws.com", ".amazonaws.com.cn")):
        # Bucket names are rarely host names at someone's own endpoint.
        made = session.client("s3", config=config.merge(Config(s3={"addressing_style": "path"})))
    return made


@contextmanager
def translated(bucket: str) -> Iterator[None]:
    """What boto3 raises, as an OSError that says what to do about it."""
    try:
        yield
    except (BotoCoreError, ClientError, ResponseParserError) as error:
        number, told = _meaning(error, bucket)
        raise OSError(number, told) from error


def _meaning(error: Exception, bucket: str) -> tuple[int, str]:
    match error:
        case ClientError():
            return _answer(error.response, bucket)
        case NoCredentialsError() | PartialCredentialsError():
            return errno.EPERM, (
                f"{_sentence(error)}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, "
                "on every node"
            )
        case SSLError() if "CERTIFICATE" in str(error).upper():
            return errno.EPERM, f"{_sentence(error)}: set AWS_CA_BUNDLE to the authority's certificate"
        case ReadTimeoutError() | ConnectTimeoutError():
            return errno.ETIMEDOUT, f"no answer from {_endpoint()}; {_CHECK_ENDPOINT}"
        case NoConnectionError():
            return errno.EHOSTUNREACH, f"no connection to {_endpoint()}; {_CHECK_ENDPOINT}"
        case HTTPClientError() | IncompleteReadError() | ResponseParserError():
            return errno.EIO, f"an answer from {_endpoint()} was cut off"
        case CredentialRetrievalError():
            return errno.EAGAIN, _sentence(error)
        case _:  # a profile that is not there, an endpoint that is no URL
            return errno.EINVAL, _sentence(error)


_CHECK_ENDPOINT = "should it be elsewhere, set AWS_ENDPOINT_URL_S3"


def _answer(response: dict[str, Any], bucket: str) -> tuple[int, str]:
    code = str(response.get("Error", {}).get("Code", ""))
    said = response.get("Error", {}).get("Message") or "no reason given"
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    named = f"{_endpoint()} answers {status} {code}".removesuffix(f" {status}")
    if code == "NoSuchBucket":
        return errno.ENODEV, f"there is no bucket {bucket} at {_endpoint()}: create it, or give another"
    if status in _BUSY_STATUS or code in _BUSY_CODES:
        return errno.EIO, named
    if status in (301, 307, 308) or code in _ELSEWHERE:
        return errno.EREMOTE, f"{named}, the bucket {bucket} is in another region: set AWS_DEFAULT_REGION"
    if status in (401, 403):
        return errno.EACCES, (
            f"{named}, access is denied ({said}): give credentials that may list the bucket {bucket}, "
            "and read, write and delete in it"
        )
    return _NUMBERS.get(status, errno.EINVAL), f"{named} ({said})"


def _endpoint() -> str:
    return str(client().meta.endpoint_url)


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
