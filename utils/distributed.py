"""Several processes on one job: `torchrun --nproc_per_node N main.py ...`.

Every process runs the whole program with the same random numbers and takes its share of what is worth sharing: episodes,
evaluation, teachers to be inverted, asked or trained, a batch's images. What the shares give is put together, so that all
stay alike; the first process alone writes. With one process nothing here does anything.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from utils import seed
from utils.errors import UserError

Item = TypeVar("Item")


@contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Inside the block this process is part of the job that torchrun started, if it did; gives the process's device.

    Only the first process is heard; what another one dies of is said when it leaves.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    backend = "gloo"
    if device.type == "cuda":
        cards = torch.cuda.device_count()
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % cards)
        torch.cuda.set_device(device)
        backend = "nccl" if int(os.environ["LOCAL_WORLD_SIZE"]) <= cards else "gloo"  # NCCL wants a card for each process
    dist.init_process_group(backend)
    try:
        with ExitStack() as stack:
            if rank() > 0:
                nowhere = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
                stack.enter_context(redirect_stdout(nowhere))
                stack.enter_context(redirect_stderr(nowhere))
            yield device
            _talk(dist.barrier)  # nobody hangs up while another still speaks
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share() -> slice:
    """Of a list that all processes have, the items of this one."""
    return slice(rank(), None, size())


def all_sum(tensors: Sequence[Tensor]) -> None:
    """Add up each tensor over the processes, in place, in one message."""
    if size() == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    _talk(lambda: dist.all_reduce(flat))
    for tensor, summed in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(summed.view_as(tensor))


def by_shares(function: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """`function` of a batch (B, ...), each process for its share of the images; the outputs (B, ...) on every process.

    All processes are to compute the same loss of the outputs: each then gets the gradient of its share, which `sum_gradients`
    adds up. What `function` draws is not what one process would draw; the run's stream stays where it is.
    """
    if size() == 1:
        return function(batch)
    with seed.kept():
        own = function(batch[share()])
    return _Whole.apply(own, len(batch))


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Add up the gradients that each process has of its share of a batch."""
    if size() > 1:
        all_sum([parameter.grad for parameter in parameters if parameter.grad is not None])


def total(own: Tensor) -> Tensor:
    """The sum over the processes; gradients pass."""
    return own if size() == 1 else _Total.apply(own)


class _Whole(torch.autograd.Function):
    """A batch from its shares. Every process has the same loss of it, so none needs the others' gradients."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, count: int) -> Tensor:
        whole = own.new_zeros((count, *own.shape[1:]))
        whole[share()] = own
        all_sum([whole])
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[share()], None


class _Total(torch.autograd.Function):
    """A sum over processes, on which the loss depends through each of them."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        summed = own.clone()
        all_sum([summed])
        return summed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        summed = gradient.clone()
        all_sum([summed])
        return summed


def gathered(own: Sequence[Item]) -> list[Item]:
    """The whole list from the shares that each process made of it (`share`), in order, on every process."""
    if size() == 1:
        return list(own)
    heard = from_each((_lies_on_a_card(own), moved(list(own), torch.device("cpu"))))
    parts = [part for _, part in heard]
    if any(on_a_card for on_a_card, _ in heard):  # an empty share does not know
        parts = moved(parts, torch.device("cuda", torch.cuda.current_device()))
    whole: list[Item] = []
    for place in range(max(map(len, parts))):
        whole += [part[place] for part in parts if place < len(part)]
    return whole


def moved(value: Any, device: torch.device) -> Any:
    """The same with every tensor in it on `device`: lists, tuples and data classes are looked into."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, (list, tuple)):
        return type(value)(moved(part, device) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{part.name: moved(getattr(value, part.name), device) for part in fields(value)})
    return value


def _lies_on_a_card(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_cuda
    if is_dataclass(value) and not isinstance(value, type):
        return any(_lies_on_a_card(getattr(value, part.name)) for part in fields(value))
    return isinstance(value, (list, tuple)) and any(map(_lies_on_a_card, value))


def from_first(text: str) -> str:
    """What the first process says."""
    heard = [text]
    if size() > 1:
        _talk(lambda: dist.broadcast_object_list(heard, src=0))
    return heard[0]


def any_of(*flags: bool) -> list[bool]:
    """For each flag, whether it is set in some process."""
    return [any(said) for said in zip(*from_each(flags), strict=True)]


def from_each(value: Any) -> list[Any]:
    """What each process has, in order: plain objects, and tensors of the CPU."""
    heard: list[Any] = [value]
    if size() > 1:
        heard = [None] * size()
        _talk(lambda: dist.all_gather_object(heard, value))
    return heard


def _talk(message: Any) -> None:
    try:
        message()
    except RuntimeError as error:
        raise UserError(
            f"another process of this job is gone ({str(error).splitlines()[0]}); what last.pt holds is whole: start torchrun "
            "again with --resume RUN"
        ) from error
