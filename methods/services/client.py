"""A server behind HTTP: asked in several threads at once, again where asking again may help, and never twice for nothing."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any, TypeVar

import urllib3

from methods.services.protocol import BINARY
from utils.errors import UserError

T = TypeVar("T")

TOKEN = "DFML_TOKEN"  # environment variable: a token on the command line would end up in args.json
IN_FLIGHT = 8  # requests at once
FIRST_SECONDS = 5.0  # in which a server must show that it is there
READ_SECONDS = 60.0  # in which it must answer
PATIENCE = 120.0  # seconds from the first failure of a request that it may take a server to come back
FIRST_WAIT, LONGEST_WAIT = 0.5, 20.0  # between two attempts, where the server says nothing
RETRY_AFTER = 120.0  # seconds that a server may ask to be left alone
PASSING = (429, 502, 503, 504)  # statuses that pass by themselves
LARGEST_ANSWER = 1 << 28  # bytes
FAILURES = 2  # answers 500 in a row to one request: many servers call a wrong shape that


class TooLarge(Exception):
    """The server takes no request of this size."""


@dataclass(frozen=True)
class Answer:
    """A response that has arrived whole."""

    status: int
    headers: Mapping[str, str]
    data: bytes


@dataclass(frozen=True)
class Credential:
    """The header that lets a client in, its value being in an environment variable."""

    variable: str = TOKEN  # empty: none is sent
    header: str = ""  # none: Authorization, with Bearer

    def __str__(self) -> str:
        """What to do where it is not right."""
        if not self.variable:
            return f"name the environment variable that holds one, {TOKEN} or {TOKEN}_..., in the column token"
        return f"put the right one into the environment variable {self.variable}"

    def headers(self) -> dict[str, str]:
        value = os.environ.get(self.variable, "")
        if not value:
            return {}
        return {self.header: value} if self.header else {"Authorization": f"Bearer {value}"}


class Client:
    """A server by its URL. Requests are safe to repeat: asking twice changes nothing but the bill."""

    def __init__(self, url: str, credential: Credential | None = None, in_flight: int = IN_FLIGHT) -> None:
        self.url, self.credential = url.rstrip("/"), credential or Credential()
        self.in_flight = in_flight
        self._http = urllib3.PoolManager(maxsize=in_flight, block=True, retries=False)
        self._leaving = threading.Event()

    def look(self, method: str, path: str, body: bytes | None = None) -> Any:
        """The JSON of `path`; None where the server has no such path. It has `FIRST_SECONDS` to answer.

        Raises `UserError` naming the URL.
        """
        url = self.url + path
        try:
            response = self._request(method, url, body, {"Content-Type": "application/json"} if body else {}, FIRST_SECONDS)
        except urllib3.exceptions.HTTPError as error:
            raise UserError(f"{url} does not answer ({_reason(error)}); is the server running?") from error
        if response.status in (404, 405):
            return None
        if response.status != 200:
            raise self._refusal(url, response)
        try:
            return json.loads(response.data)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{url} answers, but not with JSON: is it a server of the Open Inference Protocol?") from error

    def model_names(self) -> list[str] | None:
        """The models that are ready, by the repository's index; None where the server has none."""
        found = self.look("POST", "/v2/repository/index", b"{}")
        if not isinstance(found, list):
            return None
        there = [one for one in found if isinstance(one, dict) and one.get("name") and one.get("state") != "UNAVAILABLE"]
        return list(dict.fromkeys(str(one["name"]) for one in there))  # a model may be listed once for each version

    @cached_property
    def speaks_bytes(self) -> bool:
        """Whether the server says that it takes tensors as bytes behind the JSON."""
        said = self.look("GET", "/v2")
        extensions = said.get("extensions") if isinstance(said, dict) else None
        return isinstance(extensions, list) and BINARY in extensions

    def post(
        self, path: str, body: bytes, headers: Mapping[str, str], name: str, before: Callable[[], None]
    ) -> tuple[bytes, Mapping[str, str]]:
        """The body and headers of the answer to a question.

        `before` is called before each attempt and may raise. Attempts that fail for a reason that passes are repeated for up
        to `PATIENCE` seconds. Raises `TooLarge`, and `UserError` that names the service.
        """
        url, delay, failures, since = self.url + path, FIRST_WAIT, 0, 0.0
        while True:
            before()
            try:
                response = self._request("POST", url, body, headers, READ_SECONDS)
            except urllib3.exceptions.HTTPError as error:
                what, pause = f"does not answer ({_reason(error)})", delay
            else:
                if response.status == 200:
                    return response.data, response.headers
                failures += response.status == 500
                what = f"answered {response.status}: {_words(response.data)}"
                passes = response.status in PASSING or (response.status == 500 and failures < FAILURES)
                if response.status in (400, 413):
                    raise TooLarge(what)
                if not passes:
                    raise self._refusal(url, response, name)
                pause = _asked_to_wait(response.headers.get("Retry-After")) or delay
                if pause > RETRY_AFTER:
                    raise UserError(
                        f"{name} at {url} {what}; it asks to be left alone for {pause:.0f} s: --resume goes on then, what was "
                        "answered is kept"
                    )
            since = since or time.monotonic()
            if time.monotonic() - since > PATIENCE:
                raise UserError(f"{name} at {url} {what}; is the server running? --resume goes on later, answers are kept")
            if self._leaving.wait(pause):
                raise UserError(f"{name} at {url} {what}; the run was stopped")
            delay = min(2 * delay, LONGEST_WAIT)

    def together(self, tasks: Iterable[Callable[[], T]]) -> list[T]:
        """The results of all tasks in their order, `in_flight` of them at once.

        Where one fails, those that are under way are finished, those that wait are not begun, and the error is raised.
        """
        workers = ThreadPoolExecutor(self.in_flight, thread_name_prefix="asking")
        asked: list[Future[T]] = [workers.submit(task) for task in tasks]
        try:
            done, _ = wait(asked, return_when=FIRST_EXCEPTION)
            failed = next((error for one in done if (error := one.exception())), None)
            if failed is not None:
                raise failed
            return [one.result() for one in asked]
        except BaseException:
            for one in asked:
                one.cancel()
            self._leaving.set()
            raise
        finally:
            workers.shutdown(cancel_futures=True)
            self._leaving.clear()

    def _request(self, method: str, url: str, body: bytes | None, headers: Mapping[str, str], seconds: float) -> "Answer":
        """The whole response; one that drips, or does not end, is given up like one that does not come."""
        timeout, begun = urllib3.Timeout(connect=FIRST_SECONDS, read=seconds), time.monotonic()
        all_headers = {**headers, **self.credential.headers()}
        try:
            response = self._http.request(method, url, body=body, headers=all_headers, timeout=timeout, preload_content=False)
        except (ValueError, UnicodeError) as error:
            raise UserError(f"{url} cannot be asked with these headers ({error}): {self.credential}") from error
        content = bytearray()
        for piece in response.stream(1 << 16):
            content += piece
            if len(content) > LARGEST_ANSWER or time.monotonic() - begun > 2 * seconds:
                response.close()
                raise urllib3.exceptions.ReadTimeoutError(self._http.connection_from_url(url), url, "its answer does not end")
        response.release_conn()
        return Answer(response.status, response.headers, bytes(content))

    def _refusal(self, url: str, response: "Answer", name: str = "") -> UserError:
        who = f"{name} at {url}" if name else url
        if response.status in (401, 403):
            return UserError(f"{who} wants a token (status {response.status}): {self.credential}")
        return UserError(f"{who} answered {response.status}: {_words(response.data)}")


def _reason(error: Exception) -> str:
    """The innermost words of urllib3's errors, which nest."""
    while (inner := getattr(error, "reason", None)) is not None and isinstance(inner, Exception):
        error = inner
    return " ".join(str(error).split()).rpartition("Failed to establish a new connection: ")[2][-200:] or type(error).__name__


def _words(body: bytes) -> str:
    """What an error's body says: servers send {"error"}, {"detail"} or text."""
    text = body[:2000].decode(errors="replace")
    try:
        content = json.loads(text)
        said = content.get("error") or content.get("detail") if isinstance(content, dict) else content
        text = said if isinstance(said, str) else json.dumps(said) if said else text
    except (ValueError, RecursionError):
        pass
    return " ".join(text.split())[:300] or "nothing"


def _asked_to_wait(retry_after: str | None) -> float:
    """Seconds of a Retry-After header: a number or a date; 0 where there is none that can be read."""
    if not retry_after:
        return 0.0
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, OverflowError, TypeError):
        return 0.0
