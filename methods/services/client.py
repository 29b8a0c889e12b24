"""Teachers behind HTTP: what `methods.runs.serve` speaks, or any service that speaks the same."""

import json
import os
from typing import Any

import numpy as np
import torch
import urllib3
from torch import Tensor

from methods.services.black_box import ApiDtype, Listed
from utils.errors import UserError

TOKEN = "DFML_TOKEN"  # environment variable: a token on the command line would end up in args.json
CONNECT_SECONDS, READ_SECONDS = 5.0, 60.0
# After failures waits of 0, 1, 2, 4, ... at most 20 s: a service may take two minutes to come back.
RETRY = urllib3.Retry(
    total=10, backoff_factor=0.5, backoff_max=20, status_forcelist=(429, 500, 502, 503, 504), allowed_methods=None,
    raise_on_status=False,
)  # fmt: skip


class HttpServer:
    """One server of teachers. A request is repeated on time-outs, lost connections and 5xx; asking twice changes nothing."""

    def __init__(self, url: str, retry: urllib3.Retry = RETRY) -> None:
        self.url = url.rstrip("/")
        self.http = urllib3.PoolManager(timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS), retries=retry)

    def request(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Any:
        """The response of `path`. Raises `UserError` naming the URL."""
        url = self.url + path
        token = os.environ.get(TOKEN)
        headers = (headers or {}) | ({"Authorization": f"Bearer {token}"} if token else {})
        try:
            response = self.http.request(method, url, body=body, headers=headers)
        except urllib3.exceptions.HTTPError as error:
            raise UserError(f"{url} does not answer ({error}); is the server running? --resume goes on later") from error
        if response.status == 401:
            raise UserError(f"{url} wants a token: put the right one into the environment variable {TOKEN}")
        if response.status != 200:
            raise UserError(f"{url} answered {response.status}: {response.data[:300].decode(errors='replace')}")
        return response

    def models(self, dtype: ApiDtype = "float32") -> list[Listed]:
        """The services of the server. Raises `UserError` for an answer that is no such list."""
        response = self.request("GET", "/models")
        try:
            content = json.loads(response.data)
            return [
                Listed(
                    HttpService(self, str(model["name"]), int(content["max_batch"]), dtype),
                    str(model["name"]),
                    tuple(map(str, model["class_names"])),
                    int(model["image_size"]),
                    str(model["dataset"]),
                    str(model["fingerprint"]),
                )
                for model in content["models"]
            ]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{self.url}/models is no list of teachers: {error!r}") from error


class HttpService:
    """One teacher of a server: raw little-endian float32 (or bytes) there, float32 probabilities back."""

    def __init__(self, server: HttpServer, name: str, max_batch: int, dtype: ApiDtype) -> None:
        self.server, self.name, self.max_batch, self.dtype = server, name, max_batch, dtype

    def query(self, images: Tensor) -> Tensor:
        return torch.cat([self._query(part) for part in images.split(self.max_batch)])

    def _query(self, images: Tensor) -> Tensor:
        pixels = images.cpu().numpy()
        payload = np.rint(pixels * 255).astype("u1") if self.dtype == "uint8" else pixels.astype("<f4")
        headers = {
            "Content-Type": "application/octet-stream",
            "X-Dtype": self.dtype,
            "X-Shape": ",".join(map(str, images.shape)),
        }
        path = f"/models/{self.name}/predict"
        response = self.server.request("POST", path, payload.tobytes(), headers)
        try:
            shape = [int(part) for part in response.headers["X-Shape"].split(",")]
            return torch.from_numpy(np.frombuffer(response.data, "<f4").reshape(shape).copy())
        except (ValueError, KeyError) as error:
            raise UserError(f"{self.server.url}{path} gave no float32 array of the shape it names: {error}") from error
