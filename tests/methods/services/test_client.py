"""A server that fails in every way that servers do, and what a person is told."""

import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from methods.services import client
from methods.services.client import Client, Credential, TooLarge
from utils.errors import BudgetSpent, UserError

Answer = tuple[int, dict[str, str], bytes]
GOOD: Answer = (200, {}, b"good")


class Planned(BaseHTTPRequestHandler):
    """Its answers come from `plan`, one after another, the last for ever; a status of 0 holds on, one of -1 hangs up."""

    plan: list[Answer]
    asked: int
    most: int  # requests at once so far
    now: int
    hold: threading.Event
    lock: threading.Lock
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        own = type(self)
        self.rfile.read(int(self.headers["Content-Length"]))
        with own.lock:
            answer = own.plan[min(own.asked, len(own.plan) - 1)]
            own.asked, own.now = own.asked + 1, own.now + 1
            own.most = max(own.most, own.now)
        self.answer(*answer)
        with own.lock:
            own.now -= 1

    def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        if status == 0:
            self.hold.wait(600)  # longer than the client does
        if status <= 0:
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[type[Planned], str]]:
    """The server, and a client that waits for nothing but what it is told to."""
    state = {"hold": threading.Event(), "lock": threading.Lock(), "asked": 0, "most": 0, "now": 0}
    handler = type("OfThisTest", (Planned,), state)
    running = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(client, "LONGEST_WAIT", 0.0)
    monkeypatch.setattr(client, "FIRST_WAIT", 0.0)
    yield handler, f"http://127.0.0.1:{running.server_port}"
    handler.hold.set()
    running.shutdown()


def ask(url: str, before: Callable[[], None] = lambda: None) -> bytes:
    return Client(url).post("/v2/models/m/infer", b"{}", {}, "cats", before)[0]


@pytest.mark.parametrize("passing", [(429, {}, b"slow down"), (503, {"Retry-After": "0"}, b""), (502, {}, b""), (504, {}, b""),
                                     (500, {}, b"once"), (-1, {}, b"")])  # fmt: skip
def test_failures_that_pass_are_asked_again_and_each_attempt_is_charged(planned: tuple, passing: Answer) -> None:
    handler, url = planned
    handler.plan, charged = [passing, GOOD], []
    assert ask(url, lambda: charged.append(1)) == b"good"
    assert handler.asked == len(charged) == 2


def test_a_budget_that_is_spent_ends_the_attempts(planned: tuple) -> None:
    handler, url = planned
    handler.plan, left = [(503, {}, b"")], iter([None, None])

    def charge() -> None:
        if next(left, "spent") == "spent":
            raise BudgetSpent("no more")

    with pytest.raises(BudgetSpent):
        ask(url, charge)
    assert handler.asked == 2


@pytest.mark.parametrize(
    ("plan", "words", "attempts"),
    [
        ([(500, {}, b"shape (2, 3) expected")], "answered 500: shape \\(2, 3\\) expected", 2),
        ([(422, {}, b'{"detail": [{"loc": "inputs"}]}')], "answered 422: .*inputs", 1),
        ([(404, {}, b'{"error": "no model m"}')], "answered 404: no model m", 1),
        ([(401, {}, b"")], "environment variable DFML_TOKEN", 1),
        ([(403, {}, b"")], "environment variable DFML_TOKEN", 1),
        ([(503, {"Retry-After": "86400"}, b"closed")], "left alone for 86400 s", 1),
        ([(501, {}, b"")], "answered 501: nothing", 1),
    ],
)
def test_failures_that_stay_name_the_service(planned: tuple, plan: list[Answer], words: str, attempts: int) -> None:
    handler, url = planned
    handler.plan = plan
    with pytest.raises(UserError, match=words) as caught:
        ask(url)
    assert str(caught.value).startswith(f"cats at {url}/v2/models/m/infer")
    assert handler.asked == attempts


@pytest.mark.parametrize("status", [400, 413])
def test_too_large_is_said_to_who_can_ask_for_less(planned: tuple, status: int) -> None:
    handler, url = planned
    handler.plan = [(status, {}, b"batch over 8")]
    with pytest.raises(TooLarge, match="batch over 8"):
        ask(url)


@pytest.mark.parametrize("plan", [[(503, {}, b"busy")], [(0, {}, b"")]])
def test_patience_ends(planned: tuple, plan: list[Answer], monkeypatch: pytest.MonkeyPatch) -> None:
    handler, url = planned
    handler.plan = plan
    monkeypatch.setattr(client, "PATIENCE", 0.0)
    monkeypatch.setattr(client, "READ_SECONDS", 0.3)
    with pytest.raises(UserError, match="--resume goes on later, answers are kept"):
        ask(url)


def test_a_dead_port_is_a_sentence_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(UserError, match=f"{url}/v2 does not answer .*; is the server running"):
        Client(url).look("GET", "/v2")


def test_requests_are_under_way_together_and_come_back_in_order(planned: tuple) -> None:
    """All four are held until all four have arrived."""
    handler, url = planned
    everybody = threading.Barrier(4)
    handler.plan = [GOOD]
    asker = Client(url, in_flight=4)

    def task(number: int) -> Callable[[], int]:
        def do() -> int:
            everybody.wait(600)
            asker.post("/v2", b"{}", {}, "cats", lambda: None)
            return number

        return do

    assert asker.together([task(number) for number in range(8)]) == list(range(8))
    assert handler.asked == 8


def test_what_is_under_way_is_finished_when_another_fails(planned: tuple) -> None:
    handler, url = planned
    handler.plan = [GOOD]
    asker, begun, arrived, begun_too = Client(url, in_flight=2), threading.Event(), [], []

    def fails() -> None:
        begun.wait(600)
        raise UserError("one failed")

    def waits() -> None:
        begun_too.append(asker._leaving.wait(600))

    def works() -> None:
        begun.set()
        arrived.append(asker.post("/v2", b"{}", {}, "cats", lambda: None)[0])

    with pytest.raises(UserError, match="one failed"):
        asker.together([works, fails, *[waits] * 20])
    assert arrived == [b"good"]
    assert len(begun_too) <= 2


def test_tokens_stand_where_the_service_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINE", raising=False)
    assert Credential("MINE").headers() == {}
    monkeypatch.setenv("MINE", "secret")
    assert Credential("MINE").headers() == {"Authorization": "Bearer secret"}
    assert Credential("MINE", "X-Api-Key").headers() == {"X-Api-Key": "secret"}
    assert Credential("").headers() == {}
    monkeypatch.setenv("MINE", "two\nlines")
    with pytest.raises(UserError, match="into the environment variable MINE"):
        Client("http://127.0.0.1:9", Credential("MINE")).look("GET", "/v2")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("7", 7), (None, 0), ("soon", 0), ("Wed, 21 Oct 99999999999999999 07:28:00 GMT", 0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0)],
)
def test_retry_after_is_a_number_or_a_date(text: str | None, seconds: float) -> None:
    assert client._asked_to_wait(text) == seconds
