"""A function of tensors as one piece, for a device on which many small operators cost more to send than to do."""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

NOTICE = "compiling the outer step: the first takes a minute or two, --compile off does without"


class Compiled:
    """`function`, compiled (`torch.compile`, with CUDA graphs on a card) for each shape of its tensors.

    What it returns are tensors of its own, which the next call leaves as they are. Where a compiler is missing or cannot, a
    note says so and the function runs as it stands; a card's lack of memory is raised as ever.
    """

    def __init__(self, function: Callable[..., Any], backend: str) -> None:
        self.function = function
        graphs = "reduce-overhead" if backend == "inductor" and torch.cuda.is_available() else None
        self.compiled = torch.compile(function, fullgraph=True, dynamic=False, backend=backend, mode=graphs)
        self.news: str | None = NOTICE

    @property
    def works(self) -> bool:
        """Whether no compiler has failed so far."""
        return self.compiled is not self.function

    def __call__(self, *args: Any) -> Any:
        if not self.works:
            return self.function(*args)
        if self.news:
            print(f"note: {self.news}", file=sys.stderr)
            self.news = None
        try:
            found = self.compiled(*args)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
            print(f"note: going on without a compiled outer step: {reason[0]}", file=sys.stderr)
            self.compiled = self.function
            return self.function(*args)
        return tree_map_only(torch.Tensor, torch.clone, found)  # of memory that the next call writes over
