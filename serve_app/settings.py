"""What an operator sets of an edge application, validated before anything starts."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ByteSize, ConfigDict, Field, field_validator, model_validator

from serve_app.protocol import Limits
from shifter.switching.engines import EngineKind
from shifter.switching.host import MAX_BATCH
from shifter.switching.providers import CPU

MODEL_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
"""What is a segment of a path as it stands."""
DEFAULT_OBJECTIVE_MS = 100.0
DEADLINE_OBJECTIVES = 1.5
"""Later than the objective is late, but an answer still; predictions err, and twice the objective is not to
be exceeded: so the middle."""
MOST_READ_BYTES = 256 * 2**20
MOST_PIXELS = 178_956_970
"""Twice what Pillow warns of; above, it refuses an image whatever the limits say."""


class Settings(BaseModel):
    """Arguments of ``serve_app.edge:build``.

    Args:
        portfolio: a package (``.zip``), or a run's folder, whose current package is taken; either may
            be in a bucket (``s3://bucket/prefix/run``). Folders are those of the node that serves;
            a relative path begins where the node, or ``serve run``, was started.
        policy: ``slo``, what promises the most right answers within the objective; ``trend``, the
            paper's, which goes a size up or down as the load is kept up with or not; or ``fixed``.
        variant: for ``fixed``, the one to hold.
        objective_ms: for ``slo``, 100 by default; an answer should take no longer, from its arrival at
            the replica.
        deadline_ms: what cannot be answered so soon after its body is there is refused at once. By default
            `DEADLINE_OBJECTIVES` times the objective; without either, only ``max_queue`` refuses.
        max_queue: requests in the replica at once, being answered or waiting. One more is refused.
        max_batch: most images of several requests that one call of the engine computes.
        model: the name under which ``/v2/models`` has it; by default the first portfolio's own, with a
            hyphen for what a path cannot hold.
        engine: ``onnxruntime``, or ``torch``, the reference.
        providers: what the engine runs on, the preferred one first: ``cpu``, ``cuda``, or another of
            ONNX Runtime's. One that the node lacks is left out, and ``/status`` says so.
        threads: cores that one inference may use.
        cpus: what the replica reserves of the node's logical CPUs in Ray.
        node_labels: those that the node which serves was started with (``ray start --labels site=north``);
            any node by default.
        memory_bytes: what the package and the engines may take together, as a number of bytes or
            ``512MiB``; by default, what the node has left.
        refresh_s: how often a newer portfolio is looked for; null for never.
        decide_every_s: how often the policy looks at the load.
        log_requests: share of the answers that get a line each in the log; 0 for none, 1 for all. Late and
            refused requests get one a second whatever it is.
        max_body_bytes, max_images, max_image_pixels: see `serve_app.protocol.Limits`. No more pixels
            than Pillow reads (`MOST_PIXELS`).
        max_read_bytes: of the bodies of all requests inside together; by default what a full queue of the
            largest may have, but at most `MOST_READ_BYTES`.
        admin_token_env, admin_token_file: the environment variable, or the file, of the node that serves
            which holds the secret for ``/admin``; without one of them there is no ``/admin``. The secret
            itself is none of the settings, which Ray shows to whoever asks.
        body_timeout_s, body_silence_s: how long a client may take over a body, and between its parts.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    portfolio: str
    policy: Literal["slo", "trend", "fixed"] = "slo"
    variant: str | None = None
    objective_ms: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    deadline_ms: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    max_queue: int = Field(default=64, ge=1, le=10_000)
    max_batch: int = Field(default=MAX_BATCH, ge=1, le=1024)
    model: str | None = Field(default=None, pattern=MODEL_NAME)
    engine: EngineKind = "onnxruntime"
    providers: tuple[str, ...] = Field(default=(CPU,), min_length=1)
    threads: int = Field(default=1, ge=1)
    cpus: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    node_labels: dict[str, str] = Field(default_factory=dict)
    memory_bytes: ByteSize | None = Field(default=None, ge=1)
    refresh_s: float | None = Field(default=30.0, gt=0, allow_inf_nan=False)
    decide_every_s: float = Field(default=0.1, gt=0, le=10)
    log_requests: float = Field(default=0.0, ge=0, le=1)
    max_body_bytes: int = Field(default=Limits.body_bytes, ge=1)
    max_images: int = Field(default=Limits.images, ge=1)
    max_image_pixels: int = Field(default=Limits.image_pixels, ge=1)
    max_read_bytes: ByteSize | None = Field(default=None, ge=1)
    admin_token_env: str | None = Field(default=None, min_length=1)
    admin_token_file: str | None = Field(default=None, min_length=1)
    body_timeout_s: float = Field(default=Limits.body_s, gt=0, allow_inf_nan=False)
    body_silence_s: float = Field(default=Limits.silence_s, gt=0, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _slo_has_an_objective(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("policy", "slo") != "slo":
            return given
        told = given.get("objective_ms")
        return {**given, "objective_ms": DEFAULT_OBJECTIVE_MS if told is None else told}

    @field_validator("max_image_pixels")
    @classmethod
    def _pillow_reads_them(cls, pixels: int) -> int:
        if pixels > MOST_PIXELS:
            raise ValueError(f"Pillow refuses images of more than {MOST_PIXELS} pixels: give at most that")
        return pixels

    @model_validator(mode="after")
    def _fits_the_policy(self) -> Self:
        if (self.policy == "fixed") != (self.variant is not None):
            raise ValueError(
                "policy 'fixed' needs a variant, and the others take none: "
                f"policy={self.policy!r}, variant={self.variant!r}"
            )
        if self.policy != "slo" and self.objective_ms is not None:
            raise ValueError(
                f"objective_ms is for the policy 'slo', and {self.policy!r} does not look at it: leave it out"
            )
        return self

    @model_validator(mode="after")
    def _refuses_no_more_than_it_must(self) -> Self:
        deadline, objective = self.deadline_ms, self.objective_ms
        if deadline is not None and objective is not None and deadline < objective:
            raise ValueError(
                f"deadline_ms={deadline:g} would refuse what can be answered within "
                f"objective_ms={objective:g}: give at least that, or leave it out"
            )
        if self.max_read_bytes is not None and self.max_read_bytes < self.max_body_bytes:
            raise ValueError(
                f"max_read_bytes={int(self.max_read_bytes)} holds no body of max_body_bytes="
                f"{self.max_body_bytes}: give at least that, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _has_one_token(self) -> Self:
        if self.admin_token_env is not None and self.admin_token_file is not None:
            raise ValueError(
                f"the token is either in a variable or in a file, not in {self.admin_token_env!r} and in "
                f"{self.admin_token_file!r}: leave out admin_token_env or admin_token_file"
            )
        return self

    @property
    def deadline_s(self) -> float | None:
        """From when a request's body is there to its answer; None if it may take any time."""
        if self.deadline_ms is not None:
            return self.deadline_ms / 1e3
        return None if self.objective_ms is None else DEADLINE_OBJECTIVES * self.objective_ms / 1e3

    @property
    def read_bytes(self) -> int:
        """``max_read_bytes``, or what it is by default."""
        if self.max_read_bytes is not None:
            return self.max_read_bytes
        return max(self.max_body_bytes, min(self.max_queue * self.max_body_bytes, MOST_READ_BYTES))

    @property
    def limits(self) -> Limits:
        return Limits(
            self.max_body_bytes,
            self.max_images,
            self.max_image_pixels,
            self.body_timeout_s,
            self.body_silence_s,
        )
