"""Measure the hot paths: `python -m benchmarks.run [--quick] [--only TEXT ...]`.

Ours and the papers' way are timed in turn, A B A B, in one process on one thread; a line shows the medians, their ratio,
the relative error between both results, and the time that the machine would need at least: the counted floating-point
operations at the rate of its matrix product, or the bytes at the rate of its copies; at its end stands the memory that each
needs at most. The table also goes into
benchmarks/results/<machine>.json, where cases that were not measured this time stay as they were.
"""

import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cases import Case, all_cases
from benchmarks.machine import bandwidth, matmul_rate, name_of, peak_of, seconds_of
from utils import cli
from utils.errors import UserError
from utils.files import write_text
from utils.tables import table

RESULTS = Path(__file__).parent / "results"
SHORTEST_RUN = 0.05  # seconds: what takes less is called again and again


def measure(case: Case, runs: int, device: torch.device, rate: float, speed: float) -> dict[str, Any]:
    """Medians of both ways, taken in turn after one run of each that does not count; short work is repeated in a run."""
    with FlopCounterMode(display=False) as counter:
        case.ours()
    case.papers()
    ours_peak, papers_peak = peak_of(case.ours), peak_of(case.papers)
    ways = [(work, max(1, round(SHORTEST_RUN / seconds_of(work, device)))) for work in (case.ours, case.papers)]
    pairs = [tuple(seconds_of(work, device, calls) for work, calls in ways) for _ in range(runs)]
    ours, papers = (median(times) for times in zip(*pairs, strict=True))
    return {
        "ours": ours,
        "papers": papers,
        "ratio": median(slow / fast for fast, slow in pairs),
        "floor": max(counter.get_total_flops() / rate, case.moved / speed),
        "flops": counter.get_total_flops(),
        "error": case.difference() if case.difference else None,
        "bytes": [ours_peak, papers_peak],
    }


def row(name: str, line: dict[str, Any]) -> list[str]:
    error = "" if line["error"] is None else f"{line['error']:.1e}"
    ours, papers, floor = (f"{1e3 * line[key]:.2f}" for key in ("ours", "papers", "floor"))
    peaks = ["" if peak is None else f"{peak / 2**20:.0f}" for peak in line["bytes"]]
    return [name, ours, papers, f"{line['ratio']:.2f}", floor, error, *peaks]


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser("python -m benchmarks.run", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, to see that everything runs; says nothing about speed"
    )
    parser.add_argument("--runs", type=cli.count, default=5, help="timed runs of each way")
    parser.add_argument("--only", nargs="+", default=[""], help="cases whose name holds one of these texts")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the generator and the teachers")
    parser.add_argument("--out", type=Path, help="the JSON file (default: benchmarks/results/<machine>.json)")
    cli.add_machine_flags(parser)
    parser.set_defaults(device="cpu")
    args = parser.parse_args(argv)
    args.threads = args.threads or 1
    device = cli.prepare_machine(args)
    if device.type != "cpu":
        raise UserError(f"--device {device}: these cases are made for a CPU, and would be measured there; use --device cpu")
    rate, speed = matmul_rate(device), bandwidth(device)
    threads = f"{args.threads} thread{'s' * (args.threads > 1)}"
    print(f"{name_of(device)}, {threads}: {rate / 1e9:.0f} GFLOP/s in matrix products, copies {speed / 1e9:.1f} GB/s")
    name = re.sub(r"[^\w]+", "-", name_of(device)).strip("-").lower()
    marks = {"-quick": args.quick, "-bf16": args.precision == "bf16", f"-{args.threads}-threads": args.threads > 1}
    target = args.out or RESULTS / f"{name}{''.join(mark for mark, holds in marks.items() if holds)}.json"
    about = {"machine": name_of(device), "threads": args.threads, "torch": torch.__version__, "precision": args.precision}
    about |= {"flops_a_second": rate, "bytes_a_second": speed}
    before = json.loads(target.read_text(encoding="utf-8"))["cases"] if target.is_file() else {}
    lines: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in all_cases(Path(folder), args.quick, args.precision):
            if any(text in case.name for text in args.only):
                lines[case.name] = measure(case, 1 if args.quick else args.runs, device, rate, speed)
                print("  ".join(row(case.name, lines[case.name])), flush=True)
                content = about | {"cases": before | lines}  # what was measured is kept, whatever comes next
                write_text(target, json.dumps(content, indent=2) + "\n")
    print(
        "\n"
        + table(
            ["ms", "ours", "papers' way", "ratio", "floor", "error", "MB, ours", "papers'"],
            [row(name, line) for name, line in lines.items()],
        )
    )
    print(f"kept in {target}")


if __name__ == "__main__":
    cli.exit_with_message(main)
