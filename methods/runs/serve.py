"""A pool of teachers as a service over HTTP: images there, probabilities back, and nothing else gets out.

    GET  /health                   {"status": "ok", "models": 20}
    GET  /models                   {"max_batch": 1024, "models": [...]}, each with name, class_names, image_size, dataset and
                                   fingerprint
    POST /models/NAME/predict      raw images, `X-Shape: B,3,S,S`, `X-Dtype: float32` (little-endian, in [0, 1]) or `uint8`;
                                   answers raw little-endian float32 probabilities with `X-Shape: B,N`

Raw float32 because JSON is slow and 8-bit images round away the small differences that gradients are estimated from.
"""

import argparse
import hashlib
import hmac
import math
import os
import socket
import sys
from collections.abc import Awaitable, Callable
from threading import Lock

import numpy as np
import torch
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from methods.services.black_box import LocalService
from methods.services.client import TOKEN
from methods.teachers.manifest import add_pool_flags, find_rows
from methods.teachers.pool import TeacherPool, add_teacher_flags
from utils import cli
from utils.errors import UserError
from utils.images import to_float

SERVER_DTYPES = {"float32": "<f4", "uint8": "u1"}


def create_app(pool: TeacherPool, max_batch: int = 1024, token: str | None = None) -> Starlette:
    """The application that serves `pool`; with `token`, everything but /health needs it as a bearer token."""
    names = [f"{number:03d}-{row.path.stem}" for number, row in enumerate(pool.rows)]
    by_name = {name: teacher_id for teacher_id, name in enumerate(names)}
    listed = [_described(pool, teacher_id, name) for name, teacher_id in by_name.items()]
    one_at_a_time = Lock()  # the pool reads teachers when asked, and the machine has one set of cores

    def check_token(request: Request) -> None:
        given = request.headers.get("authorization", "")
        if token is not None and not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            raise HTTPException(401, "a bearer token is needed", {"WWW-Authenticate": "Bearer"})

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok", "models": len(pool)})

    async def models(request: Request) -> Response:
        check_token(request)
        return JSONResponse({"max_batch": max_batch, "models": listed})

    async def predict(request: Request) -> Response:
        check_token(request)
        teacher_id = by_name.get(request.path_params["name"])
        if teacher_id is None:
            raise HTTPException(404, f"no model {request.path_params['name']!r}; GET /models lists them")
        row = pool.rows[teacher_id]
        dtype, shape = _form(request, (len(row.mean), row.image_size, row.image_size), max_batch)
        body = await _body(request, math.prod(shape) * np.dtype(dtype).itemsize)
        pixels = torch.from_numpy(np.frombuffer(body, dtype).reshape(shape).copy())
        images = to_float(pixels) if pixels.dtype == torch.uint8 else pixels.to(torch.get_default_dtype())
        if not bool(torch.isfinite(images).all()):
            raise HTTPException(400, "the images hold NaN or infinite values")

        def answer() -> torch.Tensor:
            with one_at_a_time:
                return LocalService(pool[teacher_id].answering).query(images.to(pool.device)).cpu()

        answers = await run_in_threadpool(answer)
        return Response(
            answers.numpy().astype("<f4").tobytes(),
            media_type="application/octet-stream",
            headers={"X-Shape": ",".join(map(str, answers.shape))},
        )

    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return PlainTextResponse(error.detail, error.status_code, error.headers)

    routes = [
        Route("/health", health),
        Route("/models", models),
        Route("/models/{name}/predict", predict, methods=["POST"]),
    ]
    handlers: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {HTTPException: refuse}
    return Starlette(routes=routes, exception_handlers=handlers)


def _described(pool: TeacherPool, teacher_id: int, name: str) -> dict[str, object]:
    row = pool.rows[teacher_id]
    digest = hashlib.sha256(row.path.read_bytes()).hexdigest()[:16]
    names = [key.split("/", 1)[1] for key in row.class_keys]
    return {"name": name, "class_names": names, "image_size": row.image_size, "dataset": row.dataset, "fingerprint": digest}


def _form(request: Request, wanted: tuple[int, int, int], max_batch: int) -> tuple[str, list[int]]:
    """Type and shape of a request's images, checked before a byte of them is read."""
    dtype = SERVER_DTYPES.get(request.headers.get("x-dtype", "float32"))
    if dtype is None:
        raise HTTPException(415, f"X-Dtype: expected one of {', '.join(SERVER_DTYPES)}")
    try:
        shape = [int(part) for part in request.headers.get("x-shape", "").split(",")]
    except ValueError:
        shape = []
    if len(shape) != 4 or tuple(shape[1:]) != wanted or shape[0] < 1:
        raise HTTPException(400, f"X-Shape: expected B,{','.join(map(str, wanted))} with B from 1")
    if shape[0] > max_batch:
        raise HTTPException(413, f"{shape[0]} images; at most {max_batch} at once")
    return dtype, shape


async def _body(request: Request, length: int) -> bytes:
    """The body, which must be `length` bytes; reading stops as soon as it is longer."""
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > length:
                raise HTTPException(413, f"the body is longer than the {length} bytes that X-Shape promises")
    except ClientDisconnect as error:
        raise HTTPException(400, "the client left before the body was complete") from error
    if len(body) != length:
        raise HTTPException(400, f"the body has {len(body)} bytes, X-Shape promises {length}")
    return bytes(body)


def add_serve_flags(parser: argparse.ArgumentParser) -> None:
    add_pool_flags(parser)
    add_teacher_flags(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=cli.whole(0, 65_535), default=8000, help="port; 0 takes a free one")
    parser.add_argument("--max_batch", type=cli.count, default=1024, help="images of a request")
    cli.add_machine_flags(parser)


def _check_free(host: str, port: int) -> None:
    """Raise `UserError` where nobody can listen."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((host, port))
        except OSError as error:
            raise UserError(f"--host {host} --port {port}: nobody can listen there ({error}); choose another port") from error


def serve(args: argparse.Namespace) -> None:
    """Serve until stopped. The token is read from the environment variable, so that no list of processes shows it."""
    pool = TeacherPool(find_rows(args), cli.prepare_machine(args), args.class_order)
    pool.check(inverts=False)
    _check_free(args.host, args.port)
    app = create_app(pool, args.max_batch, os.environ.get(TOKEN) or None)
    print(f"{len(pool)} teachers at http://{args.host}:{args.port}", file=sys.stderr)
    uvicorn.run(app, host=args.host, port=args.port, log_level="warning")
