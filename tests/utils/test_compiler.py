import pytest
import torch
from torch import Tensor

from utils.compiler import Compiled


def test_a_compiled_function_gives_the_same_and_says_that_it_takes_a_while_once(capsys: pytest.CaptureFixture[str]) -> None:
    def function(x: Tensor, power: int) -> tuple[Tensor, dict[str, Tensor]]:
        return x**power, {"sum": x.sum()}

    compiled, x = Compiled(function, "eager", "the work"), torch.arange(3.0)
    for _ in range(2):
        powers, sums = compiled(x, 2)
        assert powers.tolist() == [0, 1, 4]
        assert sums["sum"] == 3
    assert capsys.readouterr().err.count("compiling") == 1


def test_what_is_returned_is_the_callers_own() -> None:
    memory = torch.zeros(2)  # as a CUDA graph writes its results to one place
    compiled = Compiled(lambda x: memory, "eager", "the work")
    compiled.compiled = lambda x: memory.copy_(x)
    first = compiled(torch.ones(2))
    compiled(torch.full((2,), 5.0))
    assert first.tolist() == [1, 1]


def test_where_a_compiler_cannot_the_function_runs_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    def no_backend(*args: object) -> None:
        raise RuntimeError("no compiler here\nand much more")

    compiled = Compiled(lambda x: 2 * x, "eager", "the work")
    compiled.compiled = no_backend
    assert compiled(torch.ones(1)).item() == 2
    assert compiled(torch.ones(1)).item() == 2
    assert capsys.readouterr().err.count("the work could not be compiled and goes on as it was: no compiler here\n") == 1


def test_a_lack_of_memory_is_the_callers_business() -> None:
    def too_large(*args: object) -> None:
        raise torch.OutOfMemoryError

    compiled = Compiled(lambda x: x, "eager", "the work")
    compiled.compiled = too_large
    with pytest.raises(torch.OutOfMemoryError):
        compiled(torch.ones(1))
