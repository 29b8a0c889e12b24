"""A pool of teachers as an inference server: images there, probabilities back, and nothing else gets out.

It speaks the Open Inference Protocol (KServe v2), whose words stand in `methods.services.protocol`:

    GET  /v2                          name, version and extensions
    GET  /v2/health/live, /ready      200; they need no token
    POST /v2/repository/index         the models, by name
    GET  /v2/models/NAME              inputs and outputs; its `parameters` say what the protocol has no word for: class_names,
                                      image_size, dataset, fingerprint and max_batch
    GET  /v2/models/NAME/ready        200
    POST /v2/models/NAME/infer        `images` (B, 3, S, S): FP32 in [0, 1], or UINT8; answers `probabilities` (B, N) of FP32
"""

import argparse
import asyncio
import hashlib
import hmac
import json
import math
import os
import socket
import sys
from collections.abc import Awaitable, Callable
from threading import Lock
from typing import Any

import torch
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from methods.services.api import api_of
from methods.services.black_box import LocalService
from methods.services.client import TOKEN
from methods.services.protocol import BINARY, JSON_LENGTH, Named, decode, encode
from methods.teachers.manifest import add_pool_flags, find_rows
from methods.teachers.pool import TeacherPool, add_teacher_flags
from utils import cli
from utils.errors import UserError
from utils.images import to_float

DATATYPES = ("FP32", "UINT8")
IMAGES, PROBABILITIES = "images", "probabilities"  # the input and the output of every model
OUTSIDE = 0.5  # by which a pixel may leave [0, 1]: steps of an estimated gradient do
CHARACTERS = 24  # that a number may take in JSON
HEAD_BYTES = 1 << 16  # for what a request says beside its numbers
BODY_SECONDS = 60.0  # in which a request must be complete
CONNECTIONS, AT_ONCE = 256, 8  # clients, and requests of theirs that are held in memory


class ModelServer:
    """What is served, and how it answers: a method for each path."""

    def __init__(self, pool: TeacherPool, max_batch: int, token: str | None) -> None:
        self.pool, self.max_batch, self.token = pool, max_batch, token
        self.by_name = {f"{number:03d}-{row.path.stem}": number for number, row in enumerate(pool.rows)}
        self.together = asyncio.Semaphore(AT_ONCE)
        self.one_at_a_time = Lock()  # the pool reads teachers when asked, and the machine has one set of cores

    def check_token(self, request: Request) -> None:
        given = request.headers.get("authorization", "")
        if self.token is not None and not hmac.compare_digest(given.encode(), f"Bearer {self.token}".encode()):
            raise HTTPException(401, "a bearer token is needed", {"WWW-Authenticate": "Bearer"})

    def _fingerprint(self, teacher_id: int) -> str:
        """A word that is another one when answers are: the teacher, what its list says of it, and what is let through."""
        about = json.dumps([self.pool.fingerprint_of(teacher_id), vars(self.pool.api)])
        return hashlib.sha256(about.encode()).hexdigest()

    def teacher_id(self, request: Request) -> int:
        name = request.path_params["name"]
        if name not in self.by_name:
            raise HTTPException(404, f"no model {name!r}; POST /v2/repository/index lists them")
        return self.by_name[name]

    async def healthy(self, request: Request) -> Response:
        return JSONResponse({"live": True, "ready": True})

    async def server(self, request: Request) -> Response:
        self.check_token(request)
        return JSONResponse({"name": "data-free-meta-learning", "version": "2", "extensions": [BINARY, "model_repository"]})

    async def index(self, request: Request) -> Response:
        self.check_token(request)
        return JSONResponse([{"name": name, "version": "1", "state": "READY", "reason": ""} for name in self.by_name])

    async def model(self, request: Request) -> Response:
        self.check_token(request)
        teacher_id = self.teacher_id(request)
        row = self.pool.rows[teacher_id]
        parameters = {
            "class_names": row.known_as,
            "image_size": row.image_size,
            "dataset": row.dataset,
            "fingerprint": self._fingerprint(teacher_id),
            "max_batch": self.max_batch,
        }
        images = [-1, *self._image_shape(teacher_id)]
        return JSONResponse(
            {
                "name": request.path_params["name"],
                "versions": ["1"],
                "platform": "pytorch",
                "inputs": [{"name": IMAGES, "datatype": "FP32", "shape": images}],
                "outputs": [{"name": PROBABILITIES, "datatype": "FP32", "shape": [-1, len(row.class_ids)]}],
                "parameters": parameters,
            }
        )

    async def ready(self, request: Request) -> Response:
        self.check_token(request)
        self.teacher_id(request)
        return JSONResponse({"name": request.path_params["name"], "ready": True})

    async def infer(self, request: Request) -> Response:
        self.check_token(request)
        teacher_id = self.teacher_id(request)
        if request.headers.get("content-encoding", "identity") != "identity":
            raise HTTPException(415, "compressed bodies are not taken: send it as it is")
        shape = self._image_shape(teacher_id)
        each = 4 if JSON_LENGTH in request.headers else CHARACTERS  # bytes of a number
        async with self.together:
            body = await _body(request, HEAD_BYTES + each * self.max_batch * math.prod(shape))
            try:
                content, tensors = await run_in_threadpool(decode, "inputs", body, request.headers)
            except ValueError as error:
                raise HTTPException(400, f"the body is no request of the protocol: {error}") from error
            images = self._images(tensors, shape)
            answers = await run_in_threadpool(self._answer, teacher_id, images)
        outer = {"model_name": request.path_params["name"], "model_version": "1"}
        outer |= {"id": content["id"]} if isinstance(content.get("id"), str) else {}
        named = Named(PROBABILITIES, "FP32", answers.float().numpy())
        data, headers = encode("outputs", [named], _wants_bytes(content), outer)
        return Response(data, headers=headers)

    def _image_shape(self, teacher_id: int) -> tuple[int, int, int]:
        row = self.pool.rows[teacher_id]
        return len(row.mean), row.image_size, row.image_size

    def _images(self, tensors: list[Named], shape: tuple[int, int, int]) -> torch.Tensor:
        """The images of a request, in [0, 1]."""
        (given,) = tensors if len(tensors) == 1 else (None,)
        if given is None or given.datatype not in DATATYPES:
            raise HTTPException(400, f"expected one input, {IMAGES}, of {' or '.join(DATATYPES)}")
        found, wanted = list(given.values.shape), ", ".join(map(str, shape))
        if len(found) != 4 or tuple(found[1:]) != shape or not found[0]:
            raise HTTPException(400, f"{given.name} has the shape {found}; expected [B, {wanted}] with B from 1")
        if len(given.values) > self.max_batch:
            raise HTTPException(413, f"{len(given.values)} images; at most {self.max_batch} at once")
        pixels = torch.from_numpy(given.values)
        images = to_float(pixels) if pixels.dtype == torch.uint8 else pixels.to(torch.get_default_dtype())
        if not bool(torch.isfinite(images).all()):
            raise HTTPException(400, "the images hold NaN or infinite values")
        if float(images.min()) < -OUTSIDE or float(images.max()) > 1 + OUTSIDE:
            raise HTTPException(400, f"{given.datatype} pixels lie in [0, 1], of UINT8 from 0 to 255; these do not")
        return images

    def _answer(self, teacher_id: int, images: torch.Tensor) -> torch.Tensor:
        api = self.pool.api
        with self.one_at_a_time:
            answers = LocalService(self.pool[teacher_id].answering).query(api.sent(images).to(self.pool.device)).cpu()
        return api.heard(answers)


def create_app(pool: TeacherPool, max_batch: int = 1024, token: str | None = None) -> Starlette:
    """The application that serves `pool`; with `token`, everything but health needs it as a bearer token."""
    served = ModelServer(pool, max_batch, token)
    of_a_model = [("", served.model, "GET"), ("/ready", served.ready, "GET"), ("/infer", served.infer, "POST")]
    routes = [
        Route("/v2", served.server),
        Route("/v2/health/live", served.healthy),
        Route("/v2/health/ready", served.healthy),
        Route("/v2/repository/index", served.index, methods=["POST"]),
        *[
            Route(f"/v2/models/{{name}}{version}{path}", answer, methods=[method])
            for version in ("", "/versions/1")
            for path, answer, method in of_a_model
        ],
    ]
    handlers: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {HTTPException: _refuse}
    return Starlette(routes=routes, exception_handlers=handlers)


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


def _wants_bytes(content: dict[str, Any]) -> bool:
    """Whether the answer is wanted as bytes: for all outputs, or for the one that is asked for."""
    outputs = content.get("outputs")
    asked = [content, *[one for one in outputs if isinstance(one, dict)]] if isinstance(outputs, list) else [content]
    said = [one["parameters"] for one in asked if isinstance(one.get("parameters"), dict)]
    return any(one.get("binary_data_output") is True or one.get("binary_data") is True for one in said)


async def _body(request: Request, most: int) -> bytes:
    """The body; reading stops as soon as it is longer than `most` bytes, or too slow."""
    body = bytearray()

    async def read() -> None:
        async for chunk in request.stream():
            body.extend(chunk)
            if len(body) > most:
                raise HTTPException(413, f"the body is longer than {most} bytes")

    try:
        await asyncio.wait_for(read(), BODY_SECONDS)
    except asyncio.TimeoutError as error:
        raise HTTPException(408, f"the body was not complete after {BODY_SECONDS:g} s") from error
    except ClientDisconnect as error:
        raise HTTPException(400, "the client left before the body was complete") from error
    return bytes(body)


def add_serve_flags(parser: argparse.ArgumentParser) -> None:
    add_pool_flags(parser)
    add_teacher_flags(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=cli.whole(0, 65_535), default=8000, help="port; 0 takes a free one")
    parser.add_argument("--max_batch", type=cli.count, default=1024, help="images of a request")
    cli.add_machine_flags(parser)


def free_port(host: str, port: int) -> int:
    """The port, or for 0 one that is free. Raises `UserError` where nobody can listen."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((host, port))
            return one.getsockname()[1]
        except OSError as error:
            raise UserError(f"--host {host} --port {port}: nobody can listen there ({error}); choose another port") from error


def serve(args: argparse.Namespace) -> None:
    """Serve until stopped. The token is read from the environment variable, so that no list of processes shows it."""
    pool = TeacherPool(find_rows(args), cli.prepare_machine(args), args.class_order, api_of(args))
    pool.check(inverts=False)
    args.port = free_port(args.host, args.port)
    app = create_app(pool, args.max_batch, os.environ.get(TOKEN) or None)
    print(f"{len(pool)} teachers at http://{args.host}:{args.port}", file=sys.stderr)
    uvicorn.run(app, host=args.host, port=args.port, log_level="warning", limit_concurrency=CONNECTIONS, timeout_keep_alive=30)
