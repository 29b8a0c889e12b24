from benchmarks import processes
from main import parse_args


def test_every_run_of_it_parses() -> None:
    for method, flags in processes.WORK.items():
        assert parse_args(["--method", method, *flags.split()]).method == method
