"""Bodies of the Open Inference Protocol v2, JSON or with binary tensors behind it, to a request.

No HTTP framework, and nothing of the model: what the tensor has to be is `serve_app.v2_images`' matter.
"""

from __future__ import annotations

import math
import reprlib
import struct
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from shifter.errors import RequestError

DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    name: np.dtype(code)
    for name, code in (
        *((f"UINT{8 * size}", f"<u{size}") for size in (1, 2, 4, 8)),
        *((f"INT{8 * size}", f"<i{size}") for size in (1, 2, 4, 8)),
        *((f"FP{8 * size}", f"<f{size}") for size in (2, 4, 8)),
    )
}
"""The protocol's names of numbers; as binary data they are little-endian."""
BYTES: Final = "BYTES"
OUTPUTS: Final = ("logits", "classes", "labels", "probabilities")
CLASSIFIABLE: Final = ("logits", "probabilities")
NEEDS: Final = ("variant", "min_accuracy")
"""Parameters by which a request says what it needs of the variant that answers."""

_REQUEST_FIELDS = ("id", "model_name", "parameters", "inputs", "outputs")
_MOST_DIMENSIONS = 8  # before anything is multiplied
_SHARED_MEMORY = "shared memory is not served here: send the tensor in the body"
_IN_ORDER = "requests are answered in the order of their arrival: leave it out"
_REFUSED = {
    "priority": _IN_ORDER,
    "timeout": "it is the operator who sets how long an answer may take: leave it out",
    "sequence_id": "no request depends on another here: leave it out",
    "shared_memory_region": _SHARED_MEMORY,
    "shared_memory_byte_size": _SHARED_MEMORY,
    "shared_memory_offset": _SHARED_MEMORY,
}
_REFUSED |= dict.fromkeys(("sequence_start", "sequence_end"), _REFUSED["sequence_id"])
ENCODINGS: Final = ("gzip", "deflate")
_WINDOW_BITS = {"gzip": 31, "deflate": 15}  # of zlib: which wrapping it expects


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input as sent; of its shape only the number of dimensions is known to be reasonable.

    Args:
        shape: None for a body that is nothing but the tensor of one image.
        data: as sent, little-endian; or flat, of the datatype, if it came as JSON.
    """

    name: str
    datatype: str
    shape: tuple[int, ...] | None
    data: memoryview | NDArray[Any]


@dataclass(frozen=True, slots=True)
class Wanted:
    """An output that is asked for.

    Args:
        binary: behind the JSON rather than in it.
        classification: how many of the highest values as texts instead of the numbers; 0 for the numbers.
    """

    name: str
    binary: bool = False
    classification: int = 0


@dataclass(frozen=True, slots=True)
class InferRequest:
    """What a client asks for.

    Args:
        id: None if there is none to be given back.
        parameters: those of `NEEDS` that are there, as sent.
    """

    input: Tensor
    outputs: tuple[Wanted, ...]
    id: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)


def shown(value: object) -> str:
    """What a client sent, in a message: it may be of any length."""
    return reprlib.repr(value)


def wrong(message: str) -> RequestError:
    """A request that is not of the protocol's form."""
    return RequestError(message, status=400)


def inflate(body: bytes, encoding: str, limit: int) -> bytes:
    """A body as it was before it was encoded; ``encoding`` is the header Content-Encoding.

    Raises:
        RequestError: if it is damaged, otherwise compressed, or longer than ``limit`` bytes.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    bits = _WINDOW_BITS.get(encoding)
    if bits is None:
        known = ", ".join(_WINDOW_BITS)
        raise RequestError(
            f"the Content-Encoding is {shown(encoding)}: there are {known}, one at a time", status=415
        )
    stream = zlib.decompressobj(bits)
    try:
        inflated = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise wrong(f"the body is not {encoding}: {error}") from error
    if len(inflated) > limit:
        raise RequestError(f"the body inflates to more than {limit} bytes, the limit", status=413)
    if not stream.eof:
        raise wrong(f"the body's {encoding} data end too early")
    if stream.unused_data:
        raise wrong(f"{len(stream.unused_data)} bytes follow the body's {encoding} data")
    return inflated


def parse(body: bytes, header_length: str | None, model: str) -> InferRequest:
    """A request's body; binary tensors are not copied.

    Args:
        header_length: the header Inference-Header-Content-Length: how many bytes of the body are
            JSON. None if all are, 0 if none is.
        model: the name in the address, with which one in the body has to agree.

    Raises:
        RequestError: for whatever is not as the protocol, or this service, has it.
    """
    length = _header_length(header_length, len(body))
    if length == 0:
        return InferRequest(Tensor("images", "FP32", None, memoryview(body)), _outputs(None, True))
    text, binary = memoryview(body)[:length], memoryview(body)[length:]
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        part = "the body is" if header_length is None else f"the first {length} bytes of the body are"
        raise wrong(f"{part} not JSON: {error}") from error
    known = _object(document, "the request", _REQUEST_FIELDS)
    name = known.get("model_name", model)
    if name != model:
        raise wrong(f"model_name is {shown(name)}, and the address names {model!r}")
    identity = known.get("id")
    if not (identity is None or isinstance(identity, str)):
        raise wrong(f"id is {shown(identity)}: it has to be a text")
    parameters = _parameters(known, "the request", ("binary_data_output", *NEEDS))
    all_binary = _flag(parameters, "binary_data_output", False)
    return InferRequest(
        _input(known.get("inputs"), binary, header_length is not None),
        _outputs(known.get("outputs"), all_binary),
        identity,
        {name: parameters[name] for name in NEEDS if name in parameters},
    )


def byte_elements(data: memoryview, count: int) -> list[memoryview]:
    """The elements of a BYTES tensor, each of which has its length before it, in four bytes.

    Raises:
        RequestError: if there are not ``count``, and nothing else.
    """
    elements, at = [], 0
    for index in range(count):
        begin = at + 4
        if begin > len(data):
            raise wrong(f"the data end before element {index} of {count}")
        at = begin + struct.unpack_from("<I", data, at)[0]
        if at > len(data):
            raise wrong(
                f"element {index} has {at - begin} bytes as it says, and {len(data) - begin} are left"
            )
        elements.append(data[begin:at])
    if at != len(data):
        raise wrong(f"{len(data) - at} bytes follow the last of {count} elements")
    return elements


def _header_length(told: str | None, length: int) -> int:
    if told is None:
        return length
    # Its length first: int() refuses thousands of digits.
    if not (told.isascii() and told.isdigit() and len(told) < 20 and int(told) <= length):
        raise wrong(
            f"Inference-Header-Content-Length is {shown(told)}: it has to be the number of the body's bytes "
            f"that are JSON, at most all {length}"
        )
    return int(told)


def _object(value: object, where: str, known: Collection[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise wrong(f"{where} is {shown(value)}: it has to be an object of {', '.join(known)}")
    for name in value:
        if name not in known:
            raise wrong(f"{where} holds {shown(name)}: there are {', '.join(known)}")
    return value


def _parameters(holder: Mapping[str, Any], where: str, known: Collection[str]) -> dict[str, Any]:
    parameters = holder.get("parameters")
    if parameters is None:
        return {}
    if isinstance(parameters, dict):
        for name in parameters:
            if name in _REFUSED:
                raise wrong(f"{where} has the parameter {name!r}: {_REFUSED[name]}")
    return _object(parameters, f"the parameters of {where}", known)


def _flag(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise wrong(f"{name} is {shown(value)}: it has to be true or false")
    return value


def _input(inputs: object, binary: memoryview, has_header: bool) -> Tensor:
    if not isinstance(inputs, list) or len(inputs) != 1:
        found = len(inputs) if isinstance(inputs, list) else shown(inputs)
        raise wrong(f'inputs is a list of one tensor, either "images" or "encoded"; here it is {found}')
    holder = _object(inputs[0], "inputs[0]", ("name", "shape", "datatype", "parameters", "data"))
    name, datatype = holder.get("name"), holder.get("datatype")
    if name == "images":
        if not isinstance(datatype, str) or datatype not in DTYPES:
            raise wrong(f"the datatype of images is {shown(datatype)}: there are {', '.join(DTYPES)}")
    elif name == "encoded":
        if datatype != BYTES:
            raise wrong(f"the datatype of encoded is {shown(datatype)}: it has to be {BYTES}")
    else:
        raise wrong(
            f'there is no input {shown(name)}: there are "images", pixels, and "encoded", PNG or JPEG'
        )
    shape = _shape(holder.get("shape"), name)
    parameters, data = _parameters(holder, name, ("binary_data_size",)), holder.get("data")
    if "binary_data_size" not in parameters:
        if len(binary):
            raise wrong(f"{len(binary)} bytes follow the JSON, and no input has a binary_data_size")
        if data is None:
            raise wrong(f"{name} has neither data nor binary_data_size")
        return Tensor(name, datatype, shape, _numbers(data, datatype, shape))
    size = parameters["binary_data_size"]
    if data is not None:
        raise wrong(f"{name} has both data and binary_data_size: send one of them")
    if not has_header:
        raise wrong(
            f"{name} has a binary_data_size: the header Inference-Header-Content-Length has to say "
            "how many bytes of the body are JSON"
        )
    if type(size) is not int or size != len(binary):
        raise wrong(f"binary_data_size of {name} is {shown(size)}, and {len(binary)} bytes follow the JSON")
    return Tensor(name, datatype, shape, binary)


def _shape(shape: object, name: str) -> tuple[int, ...]:
    if (
        not isinstance(shape, list)
        or len(shape) > _MOST_DIMENSIONS
        or not all(type(size) is int and size >= 0 for size in shape)
    ):
        raise wrong(
            f"the shape of {name} is {shown(shape)}: it has to be a list of whole numbers, none negative"
        )
    return tuple(shape)


def _numbers(data: object, datatype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Tensor data as JSON, flat or nested as the shape is, to a flat array."""
    if datatype == BYTES:
        raise wrong("encoded images are no JSON: send them as binary data, with binary_data_size")
    if not isinstance(data, list):
        raise wrong(f"the data of images is {shown(data)}: it has to be a list of numbers")
    found: tuple[int, ...] = (len(data),)
    flat: list[Any] = data
    while (kinds := set(map(type, flat))) == {list}:
        lengths = set(map(len, flat))
        if len(lengths) > 1 or len(found) == len(shape):
            raise wrong(f"the data of images are nested otherwise than its shape, {list(shape)}")
        found += (lengths.pop(),)
        flat = list(chain.from_iterable(flat))
    if not kinds <= {int, float}:
        raise wrong("the data of images hold something that is not a number")
    if found != shape and (len(found) > 1 or len(flat) != math.prod(shape)):
        raise wrong(
            f"the data of images are {' x '.join(map(str, found))} numbers, and its shape is {list(shape)}: "
            "send them flat or nested, as many as that"
        )
    dtype = DTYPES[datatype]
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if float in kinds:
            raise wrong(f"the data of images hold fractions, and its datatype is {datatype}: whole numbers")
        # As whole numbers: the largest of 64 bits are rounded, beyond the limit, where they become floats.
        if flat and not (min(flat) >= limits.min and max(flat) <= limits.max):
            raise wrong(f"the data of images hold a number that is no {datatype}")
        return np.array(flat, dtype)
    with np.errstate(over="ignore"):  # infinity is no pixel
        return np.array(flat, np.float64).astype(dtype)


def _outputs(outputs: object, all_binary: bool) -> tuple[Wanted, ...]:
    if outputs is None or outputs == []:
        return (Wanted("logits", all_binary), Wanted("classes", all_binary))
    if not isinstance(outputs, list):
        raise wrong(f"outputs is {shown(outputs)}: it has to be a list of objects with a name")
    wanted: dict[str, Wanted] = {}
    for index, one in enumerate(outputs):
        holder = _object(one, f"outputs[{index}]", ("name", "parameters"))
        name = holder.get("name")
        if not isinstance(name, str) or name not in OUTPUTS:
            raise wrong(f"there is no output {shown(name)}: there are {', '.join(OUTPUTS)}")
        if name in wanted:
            raise wrong(f"the output {name!r} is asked for twice")
        parameters = _parameters(holder, f"the output {name}", ("binary_data", "classification"))
        count = parameters.get("classification", 0)
        if type(count) is not int or count < 0:
            raise wrong(
                f"classification of {name} is {shown(count)}: it has to be a whole number, not negative"
            )
        if count and name not in CLASSIFIABLE:
            raise wrong(f"{name} cannot be given as a classification: {' and '.join(CLASSIFIABLE)} can")
        wanted[name] = Wanted(name, _flag(parameters, "binary_data", all_binary), count)
    return tuple(wanted.values())
