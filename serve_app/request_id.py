"""Which request it is, for logs: as the client says, or else as it is named here."""

from __future__ import annotations

import re
import uuid
from typing import Final

from starlette.datastructures import Headers

REQUEST_ID_HEADER: Final = "X-Request-ID"
MOST_CHARACTERS: Final = 128

_OTHER: Final = re.compile(r"[^!-~]")


def request_id_of(headers: Headers) -> str:
    """At most `MOST_CHARACTERS` of visible ASCII, never empty.

    Ray Serve, in both of its ingress modes, names a request that its client has not named, and gives the
    name back in the answer's header, whatever it is. So one that is too long or has other characters is
    cut and has ``?`` for these: still to be recognised in a log, and unable to forge one.
    """
    given = headers.get(REQUEST_ID_HEADER, "")
    return _OTHER.sub("?", given[:MOST_CHARACTERS]) or uuid.uuid4().hex
