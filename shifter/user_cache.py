"""Where what can be made again is kept, for the user that runs this."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(folder: str | None = None) -> Path:
    """``folder``, or ``$SHIFTER_CACHE``, or ``shifter`` where the user's caches are."""
    chosen = folder or os.environ.get("SHIFTER_CACHE")
    if not chosen:
        chosen = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "shifter")
    return Path(os.path.abspath(Path(chosen).expanduser()))
