"""A function of tensors as one piece, for a device on which many small operators cost more to send than to do."""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_map_only


class Compiled:
    """`function`, called `what` in notes, compiled (`torch.compile`, with CUDA graphs on a card) for each shape of its tensors.

    What it returns are tensors of its own, which the next call leaves as they are. Where a compiler is missing or cannot, a
    note says so and the function runs as it stands; a card's lack of memory is raised as ever.
    """

    def __init__(self, function: Callable[..., Any], backend: str, what: str) -> None:
        self.function, self.what = function, what
        graphs = "reduce-overhead" if backend == "inductor" and torch.cuda.is_available() else None
        self.compiled = torch.compile(function, fullgraph=True, dynamic=False, backend=backend, mode=graphs)
        self.told = False

    @property
    def works(self) -> bool:
        """Whether no compiler has failed so far."""
        return self.compiled is not self.function

    def __call__(self, *args: Any) -> Any:
        if not self.works:
            return self.function(*args)
        if not self.told:
            print(f"note: compiling {self.what}: the first takes a minute or two", file=sys.stderr)
            self.told = True
        try:
            found = self.compiled(*args)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
            print(f"note: {self.what} could not be compiled and goes on as it was: {reason[0]}", file=sys.stderr)
            self.compiled = self.function
            return self.function(*args)
        return tree_map_only(torch.Tensor, torch.clone, found)  # of memory that the next call writes over
