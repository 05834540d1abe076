"""One convolutional network at many sizes, and a service that changes between them.

shifter trains a network once, prunes it iteratively, reduces every pruned state *exactly* to a
smaller network, and packs the best of them as a portfolio of which an edge node serves whichever
variant its load allows (Eccles et al., *DNNShifter*, arXiv 2309.06973).

Importing this package loads nothing heavy: the names below are found when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shifter.models.prune import prune
    from shifter.portfolio import Portfolio
    from shifter.recipe import Recipe

__all__ = ["Portfolio", "Recipe", "__version__", "prune"]

__version__ = "0.1.0"

_HOMES = {"Portfolio": "shifter.portfolio", "Recipe": "shifter.recipe", "prune": "shifter.models.prune"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'shifter' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
