"""The Open Inference Protocol's words on the wire (KServe v2): tensors as JSON, or as bytes behind the JSON.

Requests and answers have one form: `{"inputs": [tensor, ...]}` and `{"outputs": [tensor, ...]}`, a tensor being name, shape,
datatype and data. With the binary extension the data of a tensor stand behind the JSON, whose length is a header. JSON
carries float32 exactly; NaN, which it cannot say, travels as null.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import orjson

Side = Literal["inputs", "outputs"]

JSON_LENGTH = "Inference-Header-Content-Length"  # of a body whose tensors stand behind its JSON
BINARY = "binary_tensor_data"  # what a server that can do so lists among its extensions
NUMBERS = {
    "BOOL": "?", "UINT8": "u1", "INT8": "i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4",
    "FP64": "<f8",
}  # fmt: skip
TEXT = "BYTES"


@dataclass
class Named:
    """A tensor with what the protocol says of it. `values` is an array of numbers, or of objects (strings) for BYTES."""

    name: str
    datatype: str
    values: np.ndarray
    parameters: dict[str, Any] = field(default_factory=dict)


def encode(side: Side, tensors: Sequence[Named], binary: bool, outer: Mapping[str, Any]) -> tuple[bytes, dict[str, str]]:
    """A body and its headers. `outer` are the other members of the JSON: model_name, id, outputs, parameters."""
    described, behind = [], []
    for tensor in tensors:
        one: dict[str, Any] = {"name": tensor.name, "shape": list(tensor.values.shape), "datatype": tensor.datatype}
        parameters = dict(tensor.parameters)
        if binary:
            behind.append(_as_bytes(tensor))
            parameters["binary_data_size"] = len(behind[-1])
        else:
            one["data"] = _as_json(tensor.values)
        described.append(one | ({"parameters": parameters} if parameters else {}))
    text = orjson.dumps({**outer, side: described}, option=orjson.OPT_SERIALIZE_NUMPY)
    if not binary:
        return text, {"Content-Type": "application/json"}
    return text + b"".join(behind), {"Content-Type": "application/octet-stream", JSON_LENGTH: str(len(text))}


def decode(side: Side, body: bytes, headers: Mapping[str, str]) -> tuple[dict[str, Any], list[Named]]:
    """The JSON of a body without its tensors, and those. Raises `ValueError` in words for what is no such body."""
    length = _json_length(headers, len(body))
    try:
        content = orjson.loads(body[:length])
    except ValueError as error:
        raise ValueError(f"no JSON: {str(error)[:100]}") from error
    described = content.pop(side, None) if isinstance(content, dict) else None
    if not isinstance(described, list) or not described:
        raise ValueError(f"its JSON has no list of {side}")
    tensors, place = [], length
    for one in described:
        tensor, used = _read(one, memoryview(body)[place:])
        tensors.append(tensor)
        place += used
    if place != len(body):
        raise ValueError(f"{len(body) - place} bytes stand behind the last of its {side}")
    return content, tensors


def _json_length(headers: Mapping[str, str], whole: int) -> int:
    text = next((value for name, value in headers.items() if name.lower() == JSON_LENGTH.lower()), str(whole))
    if not text.isascii() or not text.isdigit() or int(text) > whole:
        raise ValueError(f"{JSON_LENGTH} {text[:30]!r} is no number of bytes up to the body's {whole}")
    return int(text)


def _read(one: Any, behind: memoryview) -> tuple[Named, int]:
    """A tensor, and how many of the bytes behind the JSON are its."""
    try:
        name, datatype, shape = str(one["name"]), str(one["datatype"]), [int(side) for side in one["shape"]]
        parameters = dict(one.get("parameters") or {})
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError("a tensor without name, shape or datatype") from error
    if datatype != TEXT and datatype not in NUMBERS:
        raise ValueError(f"{name} is of datatype {datatype!r}; expected one of {', '.join(NUMBERS)}, {TEXT}")
    if min(shape, default=0) < 0:
        raise ValueError(f"{name} has the shape {shape}")
    size = parameters.get("binary_data_size")
    if size is None:
        return Named(name, datatype, _from_json(name, one.get("data"), datatype, shape), parameters), 0
    if not isinstance(size, int) or not 0 <= size <= len(behind):
        raise ValueError(f"{name} promises {size} bytes, and {len(behind)} are left")
    return Named(name, datatype, _from_bytes(name, bytes(behind[:size]), datatype, shape), parameters), size


def _as_json(values: np.ndarray) -> Any:
    """What orjson writes as a flat list: of an array of numbers itself, in the shortest digits that say the same."""
    flat = np.ascontiguousarray(values).ravel()
    return flat.tolist() if flat.dtype == object or flat.dtype == np.float16 else flat


def _from_json(name: str, data: Any, datatype: str, shape: list[int]) -> np.ndarray:
    try:
        kind = NUMBERS.get(datatype, object)
        flat = np.array(data if data is not None else [], kind).ravel()  # null becomes NaN
        if np.dtype(kind).kind in "iu" and bool((flat != np.array(data, np.float64).ravel()).any()):
            raise ValueError(datatype)  # fractions
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name} holds something else than numbers of {datatype}") from error
    if len(flat) != math.prod(shape):
        raise ValueError(f"{name} has {len(flat)} numbers for the shape {shape}")
    return flat.reshape(shape)


def _as_bytes(tensor: Named) -> bytes:
    if tensor.datatype != TEXT:
        return np.ascontiguousarray(tensor.values, NUMBERS[tensor.datatype]).tobytes()
    words = [str(value).encode() for value in tensor.values.ravel()]
    return b"".join(len(word).to_bytes(4, "little") + word for word in words)


def _from_bytes(name: str, data: bytes, datatype: str, shape: list[int]) -> np.ndarray:
    if datatype != TEXT:
        wanted = math.prod(shape) * np.dtype(NUMBERS[datatype]).itemsize
        if len(data) != wanted:
            raise ValueError(f"{name} has {len(data)} bytes for {datatype} of the shape {shape}, which takes {wanted}")
        return np.frombuffer(data, NUMBERS[datatype]).reshape(shape).copy()
    words, place = [], 0
    while place < len(data):
        end = place + 4 + int.from_bytes(data[place : place + 4], "little")
        words.append(data[place + 4 : end].decode(errors="replace"))
        place = end
    if place != len(data) or len(words) != math.prod(shape):
        raise ValueError(f"{name} has {len(words)} texts for the shape {shape}")
    return np.array(words, dtype=object).reshape(shape)
