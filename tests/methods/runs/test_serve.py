"""A pool behind HTTP, on a real socket, asked by a client that nobody here wrote."""

import asyncio
import json
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tritonclient.http
import tritonclient.http.aio
import urllib3

from methods.runs.serve import create_app
from methods.services.api import Api
from methods.services.black_box import LocalService
from methods.services.client import TOKEN
from methods.services.meter import Meter
from methods.services.protocol import JSON_LENGTH, Named, encode
from methods.services.servers import Asking, models_of
from methods.teachers import __main__ as command
from methods.teachers.manifest import read_manifest
from methods.teachers.pool import TeacherPool
from utils.errors import UserError

Served = Callable[..., Any]
IMAGES = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def pool(data_root: Path) -> TeacherPool:
    rows = read_manifest(data_root / "teachers/cifar100/conv4/3way-16px/teachers.csv")
    return TeacherPool(rows, torch.device("cpu"))


@pytest.fixture
def server(served: Served, pool: TeacherPool) -> Any:
    return served(create_app(pool, max_batch=16))


def test_it_says_what_it_serves(server: Any, pool: TeacherPool) -> None:
    listed = models_of(server.url, Asking())
    assert [entry.class_names for entry in listed] == [row.class_names for row in pool.rows]
    assert {(entry.image_size, entry.dataset) for entry in listed} == {(16, "cifar100")}
    assert len({entry.fingerprint for entry in listed}) == len(listed)


def test_a_server_that_answers_otherwise_says_so(served: Served, pool: TeacherPool) -> None:
    limited = TeacherPool(pool.rows, torch.device("cpu"), api=Api(answers="label"))
    other = TeacherPool([replace(row, mean=(0.0,) * 3) for row in pool.rows], torch.device("cpu"))
    words = [models_of(served(create_app(each, 16)).url, Asking())[0].fingerprint for each in (pool, limited, other, pool)]
    assert len({word.rpartition("@")[2] for word in words[:3]}) == 3
    assert words[0].rpartition("@")[2] == words[3].rpartition("@")[2]


def test_more_images_than_a_request_may_hold(server: Any, pool: TeacherPool) -> None:
    images = torch.rand(40, 3, 16, 16)
    for teacher_id, entry in enumerate(models_of(server.url, Asking())):
        own = LocalService(pool[teacher_id].answering)
        parts = [own.query(part) for part in images.split(16)]  # float32 answers depend on the batch
        assert torch.equal(entry.service.ask(images, Meter()), torch.cat(parts))  # type: ignore[union-attr]


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("datatype", ["FP32", "UINT8"])
def test_tritons_client_gets_bit_equal_answers(server: Any, pool: TeacherPool, binary: bool, datatype: str) -> None:
    sent = IMAGES if datatype == "FP32" else (IMAGES * 255).to(torch.uint8)
    shown = IMAGES if datatype == "FP32" else sent.float() / 255
    expected = LocalService(pool[0].answering).query(shown).numpy()
    asked = tritonclient.http.InferInput("images", list(sent.shape), datatype)
    asked.set_data_from_numpy(sent.numpy(), binary_data=binary)
    wanted = tritonclient.http.InferRequestedOutput("probabilities", binary_data=binary)
    with tritonclient.http.InferenceServerClient(server.url.removeprefix("http://")) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        name = client.get_model_repository_index()[0]["name"]
        assert client.is_model_ready(name)
        assert client.get_model_metadata(name)["outputs"][0]["name"] == "probabilities"
        answer = client.infer(name, [asked], outputs=[wanted], request_id="7")
    assert np.array_equal(answer.as_numpy("probabilities"), expected)
    assert answer.get_response()["id"] == "7"


def test_tritons_asynchronous_client(server: Any, pool: TeacherPool) -> None:
    asked = tritonclient.http.InferInput("images", list(IMAGES.shape), "FP32")
    asked.set_data_from_numpy(IMAGES.numpy())

    async def ask() -> list[np.ndarray]:
        async with tritonclient.http.aio.InferenceServerClient(server.url.removeprefix("http://")) as client:
            name = (await client.get_model_repository_index())[0]["name"]
            answers = await asyncio.gather(*[client.infer(name, [asked], model_version="1") for _ in range(4)])
            return [answer.as_numpy("probabilities") for answer in answers]

    expected = LocalService(pool[0].answering).query(IMAGES).numpy()
    assert all(np.array_equal(answer, expected) for answer in asyncio.run(ask()))


def body_of(values: Any, datatype: str = "FP32", name: str = "images", binary: bool = False) -> tuple[bytes, dict[str, str]]:
    return encode("inputs", [Named(name, datatype, np.asarray(values))], binary, {})


GOOD, HEADERS = body_of(IMAGES[:2].numpy())


def in_json(datatype: str, values: list[float]) -> bytes:
    return json.dumps({"inputs": [{"name": "images", "datatype": datatype, "shape": [1, 3, 16, 16], "data": values}]}).encode()


BAD = [
    ("/v2/models/nobody/infer", HEADERS, GOOD, 404, "no model 'nobody'"),
    ("/v2/models/{}/infer", *body_of(np.zeros((2, 3, 17, 16), "f4"))[::-1], 400, "expected [B, 3, 16, 16]"),
    ("/v2/models/{}/infer", *body_of(np.zeros((2, 3), "f4"))[::-1], 400, "expected [B, 3, 16, 16]"),
    ("/v2/models/{}/infer", *body_of(np.zeros((0, 3, 16, 16), "f4"))[::-1], 400, "from 1"),
    ("/v2/models/{}/infer", *body_of(np.zeros((1, 3, 16, 16), "f8"), "FP64")[::-1], 400, "FP32 or UINT8"),
    ("/v2/models/{}/infer", *body_of(np.zeros((17, 3, 16, 16), "f4"))[::-1], 413, "at most 16"),
    ("/v2/models/{}/infer", *body_of(np.full((1, 3, 16, 16), np.nan, "f4"))[::-1], 400, "NaN"),
    ("/v2/models/{}/infer", *body_of(np.full((1, 3, 16, 16), np.inf, "f4"), binary=True)[::-1], 400, "infinite"),
    ("/v2/models/{}/infer", HEADERS, GOOD[:-4], 400, "no request of the protocol"),
    ("/v2/models/{}/infer", HEADERS, b"", 400, "no request of the protocol"),
    ("/v2/models/{}/infer", HEADERS, b"[" * 300_000, 400, "no request of the protocol"),
    ("/v2/models/{}/infer", HEADERS, b" " * (24 * 16 * 3 * 256 + 70_000), 413, "longer than"),
    ("/v2/models/{}/infer", HEADERS | {JSON_LENGTH: "5"}, b" " * (4 * 16 * 3 * 256 + 70_000), 413, "longer than"),
    ("/v2/models/{}/infer", HEADERS | {"Content-Encoding": "gzip"}, GOOD, 415, "compressed"),
    ("/v2/models/{}/infer", *body_of(np.full((1, 3, 16, 16), 128, "f4"))[::-1], 400, "pixels lie in [0, 1]"),
    ("/v2/models/{}/infer", *body_of(np.full((1, 3, 16, 16), -2, "f4"))[::-1], 400, "pixels lie in [0, 1]"),
    ("/v2/models/{}/infer", {}, in_json("UINT8", [0.5] * 768), 400, "numbers of UINT8"),
    ("/v2/models/{}/infer", {}, in_json("UINT8", [300] * 768), 400, "numbers of UINT8"),
    ("/elsewhere", {}, b"", 404, ""),
]


@pytest.mark.parametrize(("path", "headers", "body", "status", "words"), BAD)
def test_bad_requests_are_refused_in_words(
    server: Any, path: str, headers: dict[str, str], body: bytes, status: int, words: str
) -> None:
    name = json.loads(urllib3.request("POST", server.url + "/v2/repository/index").data)[0]["name"]
    response = urllib3.request("POST", server.url + path.format(name), body=body, headers=headers, retries=False)
    assert response.status == status
    assert words in json.loads(response.data)["error"]
    assert "Traceback" not in response.data.decode()
    assert urllib3.request("GET", server.url + "/v2/health/ready").status == 200


def test_half_a_request_harms_nobody(server: Any, pool: TeacherPool) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        head = f"POST /v2/models/{next(iter(pool.rows)).path.stem}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\n"
        connection.sendall(head.encode() + GOOD[:100])
    assert urllib3.request("GET", server.url + "/v2/health/live").status == 200


def test_a_token_is_asked_for(served: Served, pool: TeacherPool, monkeypatch: pytest.MonkeyPatch) -> None:
    server = served(create_app(pool, token="secret"))
    assert urllib3.request("GET", server.url + "/v2/health/ready").status == 200
    for given in (None, "wrong"):
        monkeypatch.setenv(TOKEN, given) if given else monkeypatch.delenv(TOKEN, raising=False)
        with pytest.raises(UserError, match=TOKEN):
            models_of(server.url, Asking())
    monkeypatch.setenv(TOKEN, "secret")
    service = models_of(server.url, Asking())[0].service
    assert service.ask(IMAGES, Meter()).shape == (5, 3)  # type: ignore[union-attr]


def test_the_command_says_what_it_can_do(data_root: Path) -> None:
    for argv in ([], ["sing"]):
        with pytest.raises(UserError, match="serve"):
            command.main(argv)
    with pytest.raises(UserError, match="train them with"):
        command.main(["serve", "--data-root", str(data_root), "--dataset", "flower"])
