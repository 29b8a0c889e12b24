"""Teachers for MLServer: `python examples/mlserver_repository.py FOLDER --teachers TEACHERS.CSV [--port P] [--count N]`.

FOLDER becomes what `mlserver start FOLDER` serves, a folder for each model, with `zoo.csv` beside it, which lists the models as
services: give it to `--teachers`.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from methods.runs.serve import free_port
from methods.teachers.manifest import read_manifest
from utils import cli
from utils.files import write_text

HOST = "127.0.0.1"
COLUMNS = ("path", "arch", "model", "class_names", "image_size", "dataset", "layout", "output", "answers")


def write_settings(folder: Path, port: int) -> None:
    """One process, one port for HTTP; those for gRPC and metrics, which cannot be switched off, are free ones."""
    ports = {"http_port": port, "grpc_port": free_port(HOST, 0), "metrics_port": free_port(HOST, 0)}
    write_text(folder / "settings.json", json.dumps({"host": HOST, **ports, "parallel_workers": 0, "debug": False}))


def write_model(folder: Path, name: str, runtime: str, uri: Path, **extra: Any) -> None:
    """A model of MLServer: which class runs it, and what that reads."""
    parameters = {"uri": str(uri.resolve()), "version": "1", "extra": extra}
    (folder / name).mkdir(parents=True, exist_ok=True)
    settings = {"name": name, "implementation": runtime, "parameters": parameters, "max_batch_size": 0}
    write_text(folder / name / "model-settings.json", json.dumps(settings, indent=2) + "\n")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--teachers", type=Path, required=True, help="a teachers.csv of this project's")
    parser.add_argument("--port", type=cli.whole(0, 65_535), default=8080)
    parser.add_argument("--count", type=cli.count, help="so many of its teachers (default: all)")
    args = parser.parse_args(argv)
    lines = []
    for number, row in enumerate(read_manifest(args.teachers)[: args.count]):
        name = f"teacher-{number:03d}"
        write_model(args.folder, name, "mlserver_runtime.Teacher", args.teachers, row=number)
        names = ";".join(row.known_as)
        url = f"http://{HOST}:{args.port}"
        lines.append((url, "service", name, names, row.image_size, row.dataset, "nchw", "probabilities", "probabilities"))
    write_settings(args.folder, args.port)
    listed = pd.DataFrame(lines, columns=COLUMNS)
    write_text(args.folder / "zoo.csv", listed.to_csv(index=False, lineterminator="\n"))
    print(f"{len(lines)} models: mlserver start {args.folder}; then --teachers {args.folder}/zoo.csv")


if __name__ == "__main__":
    cli.exit_with_message(main)
