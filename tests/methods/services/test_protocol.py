import json

import numpy as np
import pytest

from methods.services.protocol import JSON_LENGTH, Named, decode, encode

NUMBERS = np.random.default_rng(0).normal(size=(2, 3, 4)).astype("<f4")


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("datatype", ["FP32", "FP64", "UINT8", "INT64", "BYTES"])
def test_what_is_sent_arrives_bit_for_bit(binary: bool, datatype: str) -> None:
    kinds = {"FP32": "<f4", "FP64": "<f8", "UINT8": "u1", "INT64": "<i8", "BYTES": object}
    values = np.array([["a:1", "é"]], dtype=object) if datatype == "BYTES" else (100 * abs(NUMBERS)).astype(kinds[datatype])
    sent = [Named("one", datatype, values), Named("two", "FP32", NUMBERS)]
    body, headers = encode("inputs", sent, binary, {"id": "7"})
    content, found = decode("inputs", body, headers)
    assert content == {"id": "7"}
    assert [tensor.name for tensor in found] == ["one", "two"]
    for tensor, own in zip(found, sent, strict=True):
        assert tensor.values.dtype == own.values.dtype
        assert np.array_equal(tensor.values, own.values)
    assert (JSON_LENGTH in headers) == binary


def test_nan_travels_as_null_and_lists_may_be_nested() -> None:
    body, headers = encode("outputs", [Named("p", "FP32", np.array([[0.5, np.nan]], "f4"))], False, {})
    assert json.loads(body)["outputs"][0]["data"] == [0.5, None]
    (tensor,) = decode("outputs", body, headers)[1]
    assert np.isnan(tensor.values[0, 1])
    nested = {"outputs": [{"name": "p", "shape": [2, 1], "datatype": "FP32", "data": [[1], [2]]}]}
    assert decode("outputs", json.dumps(nested).encode(), {})[1][0].values.tolist() == [[1.0], [2.0]]


def one(**changes: object) -> bytes:
    tensor = {"name": "p", "shape": [1, 2], "datatype": "FP32", "data": [0.5, 0.5]} | changes
    return json.dumps({"outputs": [{name: value for name, value in tensor.items() if value is not None}]}).encode()


@pytest.mark.parametrize(
    ("body", "headers", "words"),
    [
        (b"", {}, "no JSON"),
        (b"<html>", {}, "no JSON"),
        (b"[" * 100_000, {}, "no JSON"),
        (b"[]", {}, "no list of outputs"),
        (b"{}", {}, "no list of outputs"),
        (b'{"outputs": [3]}', {}, "without name"),
        (one(name=None), {}, "without name"),
        (one(shape=["x"]), {}, "without name, shape"),
        (one(shape=[-1, -2]), {}, "shape"),
        (one(shape=[1, 3]), {}, "2 numbers for the shape"),
        (one(data=None), {}, "0 numbers"),
        (one(data=["a", "b"]), {}, "something else than numbers"),
        (one(datatype="FP8"), {}, "datatype 'FP8'"),
        (one(data=None, parameters={"binary_data_size": 8}), {}, "promises 8 bytes, and 0 are left"),
        (one(), {JSON_LENGTH: "many"}, "no number of bytes"),
        (one(), {JSON_LENGTH: "99999"}, "no number of bytes"),
        (one() + b"more", {JSON_LENGTH: str(len(one()))}, "4 bytes stand behind"),
        (one(data=None, parameters={"binary_data_size": 4}) + b"1234", {}, "no JSON"),
    ],
)
def test_anything_else_is_refused_in_words(body: bytes, headers: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        decode("outputs", body, headers)


def test_bytes_must_be_as_many_as_the_shape_says() -> None:
    text = one(data=None, parameters={"binary_data_size": 4})
    with pytest.raises(ValueError, match="4 bytes for FP32"):
        decode("outputs", text + b"1234", {JSON_LENGTH: str(len(text))})
    text = one(data=None, shape=[2], datatype="BYTES", parameters={"binary_data_size": 5})
    with pytest.raises(ValueError, match="1 texts for the shape"):
        decode("outputs", text + b"\x01\x00\x00\x00a", {JSON_LENGTH: str(len(text))})
