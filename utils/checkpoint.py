"""Checkpoints: tensors and plain Python values only, written atomically, never unpickled into code."""

import ast
import hashlib
import json
import pickle
import re
import sys
import zipfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch.nn.parameter import is_lazy

from utils.errors import UserError
from utils.files import atomic_path

SIGNS = {  # of files that are taken for checkpoints
    b"\x1f\x8b": "compressed by gzip: unpack it",
    b"\x89HDF": "in the format HDF5 (Keras?): only networks of PyTorch and ONNX can be teachers",
    b"\xfd7zXZ": "compressed by xz: unpack it",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: unpack it",
    b"\x93NUMPY": "one array of numpy's: only networks of PyTorch and ONNX can be teachers",
    b"version https://git-lfs": "a pointer of Git LFS, and not the file itself: fetch that (git lfs pull)",
    b"<": "a page of the web or XML: the download has failed",
    b"\x08": "not PyTorch's, but looks like ONNX: list it with the arch onnx",
}
# What training scripts leave beside weights, and what runs nothing; under the names of other versions and systems, too
PLAIN: list[Any] = [
    Namespace, np.dtype, np.ndarray, *{type(np.dtype(kind)) for kind in "?bhilqBHILQefdUS"},
    *((kind, f"pathlib{inner}.{name}Path") for inner in ("", "._local") for name, kind in (
        ("Posix", PurePosixPath), ("PurePosix", PurePosixPath), ("Windows", PureWindowsPath), ("PureWindows", PureWindowsPath),
    )),
    *((made.__reduce__()[0], f"numpy.{core}.multiarray.{name}") for core in ("core", "_core") for name, made in (
        ("scalar", np.float64(0)), ("_reconstruct", np.zeros(0)),
    )),
]  # fmt: skip


def save(value: Any, path: str | Path) -> None:
    """Save `value` (tensors, numbers, strings, lists, dicts) to `path`; equal values give equal files.

    Raises `OSError` where the disk refuses.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(value, file)  # given a path, torch would write the temporary name into the file
        except RuntimeError as error:  # torch's way of saying that the disk is full
            raise OSError(f"{path} could not be written ({' '.join(str(error).split())[:80]}): is the disk full?") from error


def save_tensors(tensors: dict[str, torch.Tensor], path: str | Path) -> None:
    """Save named tensors in the format of safetensors."""
    with atomic_path(path) as temporary:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, temporary)


def load(path: str | Path, device: str | torch.device = "cpu") -> Any:
    """Load a checkpoint without executing anything from it.

    Raises `UserError` when the file is missing, is no checkpoint, or holds more than tensors and plain values.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"checkpoint {path} is a folder: name the file with the weights in it")
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist")
    if other := _what_else(path):
        raise UserError(f"checkpoint {path} is {other}")
    if path.suffix.lower() == ".safetensors":
        return _load_safetensors(path, device)
    _check_sums(path)
    try:
        with torch.serialization.safe_globals(PLAIN):
            return torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        found = f"holds a {code[1]}" if code else "is damaged or holds something"
        raise UserError(
            f"checkpoint {path} {found} beside tensors and plain values, and was not opened: "
            "save its state_dict again with torch.save"
        ) from error
    except Exception as error:  # a damaged file makes torch's reader raise whatever comes
        raise UserError(f"checkpoint {path} cannot be read: it is damaged or not a PyTorch file") from error


def is_torchscript(path: Path) -> bool:
    """Whether a file is a program of TorchScript and no checkpoint."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except Exception:  # whatever a damaged archive provokes: then it is none
        return False


def _what_else(path: Path) -> str:
    """What a file is by its first bytes that is no checkpoint of the kind it is called, and what to do; else nothing."""
    with path.open("rb") as file:
        head = file.read(256)
    safe = path.suffix.lower() == ".safetensors"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size and not safe:
        return "in the format of safetensors: call it .safetensors"
    if head.startswith(b"PK"):
        with suppress(Exception), zipfile.ZipFile(path) as archive:  # of a damaged one, elsewhere
            names = archive.namelist()
            if is_torchscript(path):
                return "a program of TorchScript: save its state_dict instead (torch.save(network.state_dict(), ...))"
            if any(name.endswith(("archive_format", "serialized_exported_program.json")) for name in names):
                return "a program of torch.export: save the network's state_dict instead (torch.save)"
            if safe and any(name.endswith("data.pkl") for name in names):
                return "in PyTorch's format: call it .pth"
    return "" if safe else next((what for start, what in SIGNS.items() if head.startswith(start)), "")


def _check_sums(path: Path) -> None:
    """Raise `UserError` where the tensors of a file are not those that were written: torch itself does not look."""
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            return  # of the old form, which has no sums, or none of torch's, which torch says
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except Exception as error:  # whatever a damaged archive provokes
        raise UserError(f"checkpoint {path} cannot be read: it is damaged ({error})") from error
    if bad is not None:
        raise UserError(f"checkpoint {path} is damaged: {bad} in it is not what was written; copy it again")


def plain_values(texts: Mapping[str, str]) -> dict[str, Any]:
    """What texts say that are lists, dicts, numbers or strings as Python writes them; others are left out."""
    found = {}
    for name, text in texts.items():
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            found[name] = ast.literal_eval(text)
    return found


def _load_safetensors(path: Path, device: str | torch.device) -> dict[str, Any]:
    """The tensors, and beside them what the file's metadata say."""
    try:
        with safe_open(path, "pt") as file:
            file_says = file.metadata() or {}
            said = plain_values(file_says)
        return (file_says | said) | load_file(path, str(device))
    except (SafetensorError, OSError) as error:
        raise UserError(f"checkpoint {path} cannot be read: {error}") from error


def cached(folder: Path, key: object, compute: Callable[[], Any]) -> Any:
    """`compute()`, or what it gave the last time for this `key` (anything that JSON can write), kept in `folder`.

    A file that is damaged is made anew, and a disk that keeps nothing costs time alone.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:24]
    path = folder / f"{digest}.pt"
    if path.is_file():
        with suppress(UserError):
            return load(path)
    value = compute()
    try:
        save(value, path)
    except OSError as error:
        print(f"note: {path} is not kept, and will be computed again ({error})", file=sys.stderr)
    return value


def takes(module: torch.nn.Module, state: Mapping[str, Any], source: str | Path) -> bool:
    """Load what lies in a file by the module's own rules (old names of its own, extra state), where that leaves nothing open.

    What is loaded in part is loaded again by who asks. Raises `UserError` for numbers that are not finite.
    """
    own = {
        name: value.clone() if isinstance(value, torch.Tensor) and not is_lazy(value) else value
        for name, value in module.state_dict().items()
    }
    meant = {name: value for name, value in state.items() if isinstance(value, torch.Tensor) or name in own}
    try:
        left_open = module.load_state_dict(meant)
    except Exception:  # somebody's module may raise anything
        return False
    if not hasattr(left_open, "missing_keys") or left_open.missing_keys or left_open.unexpected_keys:
        return False  # a network of its own way of loading does not say what it took
    _check_finite(module.state_dict(), own, source)
    return True


def load_weights(module: torch.nn.Module, state: dict[str, torch.Tensor], source: str | Path) -> None:
    """Load `state` into `module`, or raise one `UserError` that names the first thing that does not fit."""
    own = module.state_dict()
    missing, spare = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    sized = {name for name, tensor in own.items() if not is_lazy(tensor)}  # others take whatever comes
    wrong = [name for name in sized & state.keys() if own[name].shape != state[name].shape]
    if missing or spare or wrong:
        detail = (
            f"it lacks {missing[0]!r}" + (f" and has {spare[0]!r} instead" if spare else "")
            if missing
            else f"it has a spare {spare[0]!r}"
            if spare
            else f"{wrong[0]!r} is {tuple(state[wrong[0]].shape)}, expected {tuple(own[wrong[0]].shape)}"
        )
        raise UserError(f"{source} does not fit the {type(module).__name__} it is said to be: {detail}")
    whole = [name for name, tensor in state.items() if own[name].is_floating_point() and not tensor.is_floating_point()]
    if whole:
        raise UserError(
            f"{source}: {whole[0]!r} holds {state[whole[0]].dtype}, expected floats: save it before it is quantised"
        )
    _check_finite(state, own, source)
    named = OrderedDict(state)
    named._metadata = getattr(own, "_metadata", {})  # type: ignore[attr-defined]  # of the versions whose names these are
    module.load_state_dict(named)


def _check_finite(state: Mapping[str, Any], own: Mapping[str, Any], source: str | Path) -> None:
    """Raise `UserError` for numbers that are not finite, but for those that a module itself began with (a mask's)."""
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor):
            continue
        try:
            fine = bool(tensor.isfinite().all())
            if not fine and name in own and not is_lazy(own[name]) and own[name].shape == tensor.shape:
                fine = bool((tensor.isfinite() | (tensor == own[name].to(tensor.device))).all())
        except (RuntimeError, NotImplementedError, TypeError) as error:  # tensors that lie nowhere, are sparse, or of 8 bits
            kind = f"{tensor.dtype}, {tensor.layout}, on {tensor.device}"
            raise UserError(f"{source}: {name!r} is a tensor that cannot be read ({kind}): save it as plain floats") from error
        if not fine:
            raise UserError(
                f"{source}: {name!r} holds numbers that are not finite: its training failed, or the file is damaged"
            )
