"""Checkpoints: tensors and plain Python values only, written atomically, never unpickled into code."""

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from utils.errors import UserError
from utils.files import atomic_path


def save(value: Any, path: str | Path) -> None:
    """Save `value` (tensors, numbers, strings, lists, dicts) to `path`; equal values give equal files."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        torch.save(value, file)  # given a path, torch would write the temporary name into the file


def load(path: str | Path, device: str | torch.device = "cpu") -> Any:
    """Load a checkpoint without executing anything from it.

    Raises `UserError` when the file is missing, is no checkpoint, or holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist")
    if path.suffix == ".safetensors":
        return _load_safetensors(path, device)
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"checkpoint {path} is damaged or holds more than tensors and plain values, and was not opened: "
            "save its state_dict again with torch.save"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise UserError(f"checkpoint {path} cannot be read: it is damaged or not a PyTorch file") from error


def _load_safetensors(path: Path, device: str | torch.device) -> dict[str, torch.Tensor]:
    try:
        return load_file(path, str(device))
    except (SafetensorError, OSError) as error:
        raise UserError(f"checkpoint {path} cannot be read: {error}") from error


def cached(folder: Path, key: object, compute: Callable[[], Any]) -> Any:
    """`compute()`, or what it gave the last time for this `key` (anything that JSON can write), kept in `folder`."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:24]
    path = folder / f"{digest}.pt"
    if path.is_file():
        return load(path)
    value = compute()
    save(value, path)
    return value


def load_weights(module: torch.nn.Module, state: dict[str, torch.Tensor], source: str | Path) -> None:
    """Load `state` into `module`, or raise one `UserError` that names the first thing that does not fit."""
    own = module.state_dict()
    missing, spare = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    wrong = [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
    if missing or spare or wrong:
        detail = (
            f"it lacks {missing[0]!r}"
            if missing
            else f"it has a spare {spare[0]!r}"
            if spare
            else f"{wrong[0]!r} is {tuple(state[wrong[0]].shape)}, expected {tuple(own[wrong[0]].shape)}"
        )
        raise UserError(f"{source} does not fit the {type(module).__name__} it is said to be: {detail}")
    module.load_state_dict(state)
