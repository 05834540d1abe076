"""Every error that a user can meet, in one tree.

::

    ShifterError
    ├── RecipeError        a recipe, or an override of it, is wrong           (also a ValueError)
    ├── DataError          an image or a label cannot be used                 (also a ValueError)
    ├── StoreError         artifacts cannot be written or read                (also an OSError)
    ├── RunError           a run cannot be started or continued as asked
    ├── TrainingError      training diverged, or its workers failed
    ├── StoppedError       training was asked to stop, and has saved where it is
    ├── CheckpointError    a checkpoint is broken or does not fit             (also a ValueError)
    ├── GraphError         a network's graph cannot be used                   (also a ValueError)
    ├── InexactError       a reduced variant does not compute what its checkpoint computes
    ├── PackageError       a portfolio is broken, hostile or of another format (also a ValueError)
    ├── CalibrationError   a calibration is broken, or of another portfolio   (also a ValueError)
    ├── EngineError        a variant cannot be executed on this node
    ├── SettingsError      what a service is told to use is not on its node   (also a ValueError)
    ├── RequestError       a request to the service cannot be answered        (also a ValueError)
    │   └── NeedsError     it asks of a variant what none here can give
    ├── OverloadError      the service has too much to do to take a request
    ├── ServiceError       a service does not answer, or not as it should
    └── DemoError          the demonstration did not hold what it promises

Each message says what is wrong, the offending value, and what would be right. Our own mistakes
are ``AssertionError``, never one of these.
"""


class ShifterError(Exception):
    """Base of every error raised for a user."""


class RecipeError(ShifterError, ValueError):
    """A recipe, or an override given on the command line, is wrong."""


class DataError(ShifterError, ValueError):
    """An image or a label cannot be used; the message names its index."""


class StoreError(ShifterError, OSError):
    """Artifacts cannot be written to, or read from, the store."""


class RunError(ShifterError):
    """A run cannot be started or continued as asked."""


class TrainingError(ShifterError):
    """Training diverged, or its workers failed."""


class StoppedError(ShifterError):
    """Training was asked to stop, and has saved where it is."""


class CheckpointError(ShifterError, ValueError):
    """A sparse checkpoint or a file of weights is broken, or does not fit the network."""


class GraphError(ShifterError, ValueError):
    """A network's graph cannot be used."""


class InexactError(ShifterError):
    """A reduced variant does not compute what its sparse checkpoint computes."""


class PackageError(ShifterError, ValueError):
    """A portfolio package is broken, hostile, or of another format version.

    A message quotes what the package says of itself, so its length is bounded here.
    """

    _MOST = 2000

    def __init__(self, message: str) -> None:
        super().__init__(message if len(message) <= self._MOST else f"{message[: self._MOST]} …")


class CalibrationError(ShifterError, ValueError):
    """A calibration is broken, hostile, of another format version, portfolio or node."""


class EngineError(ShifterError):
    """A variant cannot be executed on this node."""


class SettingsError(ShifterError, ValueError):
    """A service's settings name what is not there on the node that serves."""


class RequestError(ShifterError, ValueError):
    """A request to the service cannot be answered.

    Args:
        message: for the client; what it quotes of the request may be long, so its length is bounded here.
        status: the HTTP status that says so; 4xx, the request being at fault.
    """

    _MOST = 2000

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message if len(message) <= self._MOST else f"{message[: self._MOST]} …")
        self.status = status


class NeedsError(RequestError):
    """A request asks of the variant that answers it what none of the portfolio can give, or nonsense."""


class OverloadError(ShifterError):
    """The service has too much to do to take a request.

    Args:
        retry_after_s: whole seconds after which it may be worth asking again.
    """

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ServiceError(ShifterError):
    """A service that is asked does not answer, or not as it should."""


class DemoError(ShifterError):
    """The demonstration did not hold what it promises."""
