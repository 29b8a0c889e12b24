"""A pool behind HTTP, on a real socket."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import urllib3
import uvicorn

from methods.inversion.zeroth_order import ZerothOrder, estimate_gradient
from methods.runs.serve import create_app
from methods.services import client
from methods.services.black_box import LocalService
from methods.services.client import TOKEN, HttpServer
from methods.teachers import __main__ as command
from methods.teachers.manifest import read_manifest
from methods.teachers.pool import TeacherPool
from utils.errors import UserError

QUICK = urllib3.Retry(total=2, backoff_factor=0.01, status_forcelist=(500, 503), allowed_methods=None, raise_on_status=False)


@pytest.fixture(scope="module")
def pool(data_root: Path) -> TeacherPool:
    rows = read_manifest(data_root / "teachers/cifar100/conv4/3way-16px/teachers.csv")
    return TeacherPool(rows, torch.device("cpu"))


class Running(uvicorn.Server):
    """A server in a thread, at `url`."""

    def __init__(self, app: object) -> None:
        super().__init__(uvicorn.Config(app, port=0, log_level="error"))  # type: ignore[arg-type]
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()
        while not self.started:
            time.sleep(0.01)
        self.port = self.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self.should_exit = True
        self.thread.join(10)


@pytest.fixture(scope="module")
def server(pool: TeacherPool) -> Iterator[Running]:
    running = Running(create_app(pool, max_batch=16))
    yield running
    running.stop()


def test_the_answers_are_those_of_the_teacher(server: Running, pool: TeacherPool) -> None:
    listed = HttpServer(server.url).models()
    assert [entry.class_names for entry in listed] == [row.class_names for row in pool.rows]
    assert {entry.image_size for entry in listed} == {16}
    images = torch.rand(40, 3, 16, 16)  # more than a request may hold
    for teacher_id, entry in enumerate(listed):
        assert torch.allclose(entry.service.query(images), LocalService(pool[teacher_id]).query(images), atol=1e-6)
    (eight_bits, *_) = HttpServer(server.url).models("uint8")
    rounded = (images * 255).round() / 255
    assert torch.allclose(eight_bits.service.query(images), LocalService(pool[0]).query(rounded), atol=1e-6)


def test_the_estimate_over_http_is_the_local_one(server: Running, pool: TeacherPool) -> None:
    remote, local = HttpServer(server.url).models()[0].service, LocalService(pool[0])
    x, estimates = torch.rand(4, 3, 16, 16), []
    for service in (remote, local):
        torch.manual_seed(0)

        def losses(images: torch.Tensor, query=service.query) -> torch.Tensor:
            return -query(images)[:, 1].log()

        estimates.append(estimate_gradient(losses, x, losses(x), ZerothOrder(1e-2, 8)).flatten())
    assert float(torch.cosine_similarity(*estimates, dim=0)) > 0.999


HEADERS = {"X-Shape": "2,3,16,16", "X-Dtype": "float32"}
GOOD = torch.rand(2, 3, 16, 16).numpy().tobytes()
BAD = [
    ("/models/nobody/predict", HEADERS, GOOD, 404, "no model 'nobody'"),
    ("/models/{}/predict", HEADERS | {"X-Shape": "2,3,17,16"}, GOOD, 400, "expected B,3,16,16"),
    ("/models/{}/predict", HEADERS | {"X-Shape": "2,3"}, GOOD, 400, "expected B,3,16,16"),
    ("/models/{}/predict", HEADERS | {"X-Shape": "-1,3,16,16"}, GOOD, 400, "from 1"),
    ("/models/{}/predict", HEADERS | {"X-Shape": "many"}, GOOD, 400, "expected B,3,16,16"),
    ("/models/{}/predict", HEADERS | {"X-Dtype": "float64"}, GOOD, 415, "float32, uint8"),
    ("/models/{}/predict", HEADERS | {"X-Shape": "17,3,16,16"}, GOOD, 413, "at most 16"),
    ("/models/{}/predict", HEADERS, GOOD + b"more", 413, "longer than"),
    ("/models/{}/predict", HEADERS, GOOD[:-4], 400, "promises"),
    ("/models/{}/predict", HEADERS, b"\x00\x00\xc0\x7f" * (2 * 3 * 256), 400, "NaN"),
    ("/models/{}/predict", {}, b"", 400, "expected B,3,16,16"),
    ("/elsewhere", {}, b"", 404, ""),
]


@pytest.mark.parametrize(("path", "headers", "body", "status", "words"), BAD)
def test_bad_requests_are_refused_in_words(
    server: Running, path: str, headers: dict[str, str], body: bytes, status: int, words: str
) -> None:
    name = HttpServer(server.url).models()[0].name
    response = urllib3.request("POST", server.url + path.format(name), body=body, headers=headers)
    assert response.status == status
    assert words in response.data.decode()
    assert "Traceback" not in response.data.decode()
    assert json.loads(urllib3.request("GET", server.url + "/health").data) == {"status": "ok", "models": 2}


def test_half_a_request_harms_nobody(server: Running) -> None:
    name = HttpServer(server.url).models()[0].name
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        head = f"POST /models/{name}/predict HTTP/1.1\r\nHost: x\r\nX-Shape: 2,3,16,16\r\nContent-Length: {len(GOOD)}\r\n\r\n"
        connection.sendall(head.encode() + GOOD[:100])
    assert urllib3.request("GET", server.url + "/health").status == 200


def test_a_token_is_asked_for(pool: TeacherPool, monkeypatch: pytest.MonkeyPatch) -> None:
    running = Running(create_app(pool, token="secret"))
    assert urllib3.request("GET", running.url + "/health").status == 200
    for given in (None, "wrong"):
        monkeypatch.setenv(TOKEN, given) if given else monkeypatch.delenv(TOKEN, raising=False)
        with pytest.raises(UserError, match=TOKEN):
            HttpServer(running.url).models()
    monkeypatch.setenv(TOKEN, "secret")
    assert HttpServer(running.url).models()[0].service.query(torch.rand(1, 3, 16, 16)).shape == (1, 3)
    running.stop()


class Faulty(BaseHTTPRequestHandler):
    """Lists one model; its answers come from `plan`, one after another, the last for ever."""

    plan: list[tuple[int, dict[str, str], bytes]]
    asked = 0
    hold: threading.Event

    def do_GET(self) -> None:
        model = {"name": "m", "class_names": ["a", "b"], "image_size": 8, "dataset": "x", "fingerprint": ""}
        self.answer(200, {}, json.dumps({"max_batch": 4, "models": [model]}).encode())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        answer = self.plan[min(type(self).asked, len(self.plan) - 1)]
        type(self).asked += 1
        self.answer(*answer)

    def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        if status == 0:
            self.hold.wait(600)  # longer than the client does
            return
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def faulty() -> Iterator[tuple[type[Faulty], str]]:
    handler = type("Planned", (Faulty,), {"hold": threading.Event()})
    running = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield handler, f"http://127.0.0.1:{running.server_port}"
    handler.hold.set()
    running.shutdown()


ANSWER = (200, {"X-Shape": "2,2"}, torch.full((2, 2), 0.5).numpy().tobytes())


def test_failures_that_pass_are_waited_out(faulty: tuple[type[Faulty], str], monkeypatch: pytest.MonkeyPatch) -> None:
    handler, url = faulty
    monkeypatch.setattr(client, "READ_SECONDS", 1.0)
    handler.plan = [(503, {}, b"busy"), (0, {}, b""), ANSWER]
    (entry,) = HttpServer(url, QUICK).models()
    assert entry.service.query(torch.rand(2, 3, 8, 8)).tolist() == [[0.5, 0.5]] * 2
    assert handler.asked == 3


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ([(500, {}, b"broken")], "answered 500: broken"),
        ([(400, {}, b"bad shape")], "answered 400: bad shape"),
        ([(200, {}, b"")], "gave no float32 array"),
        ([(200, {"X-Shape": "2,2"}, b"123")], "gave no float32 array"),
        ([(200, {"X-Shape": "9,9"}, b"\x00" * 16)], "gave no float32 array"),
        ([(0, {}, b"")], "does not answer"),
    ],
)
def test_failures_that_stay_name_the_url(
    faulty: tuple[type[Faulty], str], plan: list, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler, url = faulty
    handler.plan = plan
    monkeypatch.setattr(client, "READ_SECONDS", 1.0)
    (entry,) = HttpServer(url, QUICK).models()
    with pytest.raises(UserError, match=words) as caught:
        entry.service.query(torch.rand(2, 3, 8, 8))
    assert f"{url}/models/m/predict" in str(caught.value)


def test_a_dead_host_is_named() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(UserError, match=f"{url}/models does not answer"):
        HttpServer(url, QUICK).models()


def test_the_command_says_what_it_can_do(data_root: Path) -> None:
    for argv in ([], ["sing"]):
        with pytest.raises(UserError, match="serve"):
            command.main(argv)
    with pytest.raises(UserError, match="train them with"):
        command.main(["serve", "--data-root", str(data_root), "--dataset", "flower"])
