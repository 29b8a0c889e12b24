"""Requests a second to a service that takes its time: `python -m benchmarks.services [--latency 0.1] [--seconds 4]`.

A server of the Open Inference Protocol in a process of its own waits for `--latency` seconds and answers; our client asks
it about images of 32 pixels, by the number of requests in flight, images of a request, and how the tensors travel.
"""

import argparse
import asyncio
import itertools
import subprocess
import sys
import time

import numpy as np
import torch
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from methods.runs.serve import free_port
from methods.services.form import ModelForm
from methods.services.meter import Meter
from methods.services.protocol import BINARY, JSON_LENGTH, Named, decode, encode
from methods.services.remote import RemoteModel
from methods.services.servers import Asking
from utils import cli
from utils.errors import UserError
from utils.tables import table

CLASSES, SIZE = 5, 32


def slow_server(latency: float) -> Starlette:
    async def about(request: Request) -> Response:
        return JSONResponse({"name": "slow", "extensions": [BINARY]})

    async def model(request: Request) -> Response:
        return JSONResponse({"name": "m", "versions": ["1"]})

    async def infer(request: Request) -> Response:
        _, (images,) = decode("inputs", await request.body(), request.headers)
        await asyncio.sleep(latency)
        answer = Named("p", "FP32", np.full((len(images.values), CLASSES), 1 / CLASSES, "<f4"))
        body, headers = encode("outputs", [answer], JSON_LENGTH in request.headers, {})
        return Response(body, headers=headers)

    return Starlette(
        routes=[Route("/v2", about), Route("/v2/models/m", model), Route("/v2/models/m/infer", infer, methods=["POST"])]
    )


def requests_a_second(url: str, in_flight: int, batch: int, binary: str, seconds: float, latency: float) -> float:
    count = max(in_flight, round(seconds / latency * in_flight))
    images = torch.rand(batch, 3, SIZE, SIZE).repeat(count, 1, 1, 1)
    form = ModelForm("m", batch=batch, binary=binary, input="x", layout="nchw", dtype="FP32")
    service = RemoteModel(Asking(in_flight).client(url), form, CLASSES, SIZE, None)
    service.ask(images[: batch * in_flight], Meter())  # connections are made
    begin = time.perf_counter()
    service.ask(images, Meter())
    return count / (time.perf_counter() - begin)


def main(argv: list[str] | None = None) -> None:
    parser = cli.Parser("python -m benchmarks.services", description=__doc__)
    parser.add_argument("--latency", type=cli.rate, default=0.1, help="seconds that the service takes")
    parser.add_argument("--seconds", type=cli.rate, default=4.0, help="about so long for each line")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.serve:
        uvicorn.run(slow_server(args.latency), port=args.serve, log_level="error")
        return
    port = free_port("127.0.0.1", 0)
    client = Asking().client(f"http://127.0.0.1:{port}")
    server = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.services", "--serve", str(port), "--latency", str(args.latency)]
    )
    try:
        while True:
            try:
                client.look("GET", "/v2")
                break
            except UserError:
                if server.poll() is not None:
                    raise
                time.sleep(0.1)
        lines = []
        for batch, binary, in_flight in itertools.product((1, 32), ("no", "yes"), (1, 8, 32)):
            rate = requests_a_second(client.url, in_flight, batch, binary, args.seconds, args.latency)
            lines.append(
                [str(batch), "bytes" if binary == "yes" else "JSON", str(in_flight), f"{rate:.0f}", f"{rate * batch:,.0f}"]
            )
        print(table(["images of a request", "tensors as", "in flight", "requests a second", "images a second"], lines))
    finally:
        server.kill()


if __name__ == "__main__":
    cli.exit_with_message(main)
