"""A pretended device: the arithmetic is the CPU's, the rules a card's. `python tests/foreign.py FLAGS...` runs main.py there.

A tensor on `foreign:0` is a wrapper around one of the CPU. What mixes both in one operator raises, as a card raises, but for
copies, single numbers of the CPU, and indices; `.numpy()` raises; `.cpu()`, `.item()`, `.tolist()` and `torch.load` convert.
Random numbers are drawn on the CPU. It cannot see streams, kernels that a card lacks, or what the program asks of
`torch.cuda`. `install` changes its process for good: give it one of its own.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils import cli

DEVICE = "foreign:0"
COPIES = ("copy_", "_to_copy")
INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put")
FACTORIES = (  # PyTorch builds all others from the first two
    "empty.memory_format", "empty_strided", "arange", "arange.start", "arange.start_step", "linspace", "eye", "eye.m",
    "randperm",
)  # fmt: skip


class Foreign(torch.Tensor):
    """A tensor that says it lies on the device; its numbers are in `inside`, on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    inside: torch.Tensor

    def __new__(cls, inside: torch.Tensor) -> "Foreign":
        made = torch.Tensor._make_wrapper_subclass(
            cls, inside.size(), inside.stride(), inside.storage_offset(), dtype=inside.dtype, device=DEVICE
        )
        made.inside = inside
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name not in COPIES:
            refuse_two_devices(func, name in INDEXED, args, kwargs)
        mine = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Foreign)]
        known = {id(value.inside): value for value in mine}
        target = kwargs.get("device") or (args[0].device if name == "copy_" else DEVICE)
        plain_args, plain_kwargs = tree_map_only(Foreign, lambda value: value.inside, (args, kwargs))
        if kwargs.get("device") is not None:
            plain_kwargs = {**plain_kwargs, "device": "cpu"}
        found = func(*plain_args, **plain_kwargs)
        if torch.device(target).type == "cpu":
            return found
        return tree_map_only(torch.Tensor, lambda value: known[id(value)] if id(value) in known else Foreign(value), found)

    def __format__(self, form: str) -> str:
        return self.inside.__format__(form)

    def __reduce_ex__(self, protocol: int) -> Any:
        return self.inside.detach().__reduce_ex__(protocol)

    def numpy(self, *args: Any, **options: Any) -> Any:
        raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() first.")

    def tolist(self) -> Any:
        return self.cpu().tolist()


def refuse_two_devices(func: Any, indexed: bool, args: tuple, kwargs: dict) -> None:
    """Raise `RuntimeError` where an operator meets a tensor of the CPU that is no single number and no index."""
    judged = (args[0], args[2:]) if indexed else (args, kwargs)
    strays = [value for value in tree_leaves(judged) if isinstance(value, torch.Tensor) and not isinstance(value, Foreign)]
    if any(value.dim() for value in strays):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {DEVICE} and cpu! (in {func})")


class Module(_DummyBackendModule):
    """What PyTorch asks of `torch.foreign`."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def factory(name: str) -> Callable[..., Foreign]:
    packet, _, overload = name.partition(".")
    made_by = getattr(getattr(torch.ops.aten, packet), overload or "default")
    return lambda *args, device=None, pin_memory=None, **options: Foreign(made_by(*args, device="cpu", **options))


def install() -> torch.library.Library:
    """Make the device; it lasts as long as what is returned."""
    _setup_privateuseone_for_python_backend("foreign", Module())
    library = torch.library.Library("aten", "IMPL")
    for name in FACTORIES:
        library.impl(name, factory(name), "PrivateUse1")
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=) is made on the CPU and copied
    torch._C._set_multithreading_enabled(False)  # backward passes run here: the device has no thread
    read = torch.load

    def load(file: Any, map_location: Any = "cpu", **options: Any) -> Any:
        content = read(file, map_location="cpu", **options)
        return tree_map_only(torch.Tensor, lambda value: value.to(map_location), content)

    torch.load = load
    cli.select_device = lambda args: torch.device(DEVICE)
    return library


if __name__ == "__main__":
    library = install()
    import main

    main.main(sys.argv[1:])
