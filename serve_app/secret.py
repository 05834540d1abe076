"""The secret that administration is asked for with."""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path
from typing import Final, Self

from serve_app.settings import Settings
from shifter.errors import SettingsError

SHORTEST: Final = 16
_SCHEME: Final = "bearer "


class Token:
    """A secret, of which only the digest is kept: nothing that prints this can tell it."""

    def __init__(self, secret: str) -> None:
        self._digest = _digest(secret)

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """The one that the settings say where to find; None if they do not.

        Raises:
            SettingsError: if there is none, or one that can be guessed.
        """
        if settings.admin_token_env is not None:
            where = f"the environment variable {settings.admin_token_env} (admin_token_env)"
            secret = os.environ.get(settings.admin_token_env, "")
        elif settings.admin_token_file is not None:
            where = f"the file {settings.admin_token_file} (admin_token_file)"
            try:
                secret = Path(settings.admin_token_file).read_text()
            except (OSError, UnicodeDecodeError) as error:
                raise SettingsError(f"{where} cannot be read on the node that serves: {error}") from error
        else:
            return None
        secret = secret.strip()
        if len(secret) < SHORTEST or not secret.isascii() or not secret.isprintable():
            raise SettingsError(
                f"{where} holds {len(secret)} characters on the node that serves: put a secret of at least "
                f"{SHORTEST} printable ASCII characters there, such as 'openssl rand -hex 32' makes"
            )
        return cls(secret)

    def allows(self, authorization: str) -> bool:
        """Whether this header, ``Bearer …``, has the secret. Takes as long for any that has not."""
        scheme, given = authorization[: len(_SCHEME)], authorization[len(_SCHEME) :]
        same = hmac.compare_digest(_digest(given.strip()), self._digest)
        return same and scheme.lower() == _SCHEME


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode(errors="surrogateescape")).digest()
