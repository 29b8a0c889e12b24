"""What each part of chorus is worth: the method as it is, and with one thing changed at a time.

    python examples/ablation.py --out runs/ablation -- --dataset cifar100 --pre_model_num 20

Flags behind `--` go to main.py. Writes ablation.csv into --out: accuracy on meta_val, by which choices are made, and on
meta_test, with the difference from the method as it is over the same episodes. A variant that cannot be had (ten teachers of
eight) is left out with a note. Finished runs are kept, so that it can be started again.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import main as program
from examples.runs import behind_dashes, result_of
from utils import checkpoint, cli
from utils.errors import UserError
from utils.files import write_text
from utils.metrics import Score
from utils.tables import table

VARIANTS = {  # {images} and {passes} stand for a quarter of what the method as it is takes
    "as it is": "",
    "images: natural and procedural": "--sources natural procedural",
    "images: natural alone": "--sources natural",
    "images: procedural alone": "--sources procedural",
    "images: pixel inversions alone": "--sources pixel",
    "images: pixel inversions from noise": "--start noise --inversion_steps 80",
    "images: two photographs (not data-free)": "--sources photos",
    "images: a generator's alone": "--sources generator --inversion_steps 30 --bn 0.03",
    "images: real ones (not data-free)": "--sources real",
    "images: without their mirror images": "--no_mirror",
    "images: a quarter as many": "--num_images {images}",
    "targets: features": "--targets features",
    "loss: relational": "--loss relational",
    "read-out: plain": "--readout plain",
    "read-out: mirror images alone": "--readout mirror",
    "read-out: half whitened alone": "--readout whitened",
    "read-out: nearest mean of the features": "--metalearner protonet --readout plain",
    "read-out: MAML": "--metalearner maml",
    "teachers: 5": "--pre_model_num 5",
    "teachers: 10": "--pre_model_num 10",
    "a quarter of the passes": "--epochs {passes}",
}


def parse_args(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    own, passed = behind_dashes(argv)
    parser = cli.Parser("examples/ablation.py", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"), help="where everything goes")
    parser.add_argument("--only", nargs="*", help="parts of the names of the variants to run, beside the method as it is")
    return parser.parse_args(own), passed


def main(argv: Sequence[str] | None = None) -> None:
    args, passed = parse_args(sys.argv[1:] if argv is None else argv)
    whole_flags = program.parse_args(["--method", "chorus", *passed])
    quarters = {"images": whole_flags.num_images // 4, "passes": max(1, whole_flags.epochs // 4)}
    lines, whole = [], Score([])
    for name, template in VARIANTS.items():
        change = template.format(**quarters)
        if change and args.only is not None and not any(part in name for part in args.only):
            continue
        folder = "".join(letter if letter.isalnum() else "-" for letter in name)
        try:
            result = result_of(args.out, folder, ["--method", "chorus", *passed, *change.split()])
        except UserError as error:
            if not change:
                raise
            print(f"note: {name} is left out: {error}", file=sys.stderr)
            continue
        if not result["episodes"]:
            raise UserError("without an image set nothing is scored: add --dataset or --testdataset behind --")
        selected = checkpoint.load(args.out / folder / "best.pt")["selection_accuracy"]
        score = Score([value for values in result["episodes"].values() for value in values])
        whole = whole if change else score
        difference = score.minus(whole)
        lines.append((name, change, selected, score.mean, score.half_width, difference.mean, difference.half_width))
    columns = ["variant", "flags", "meta_val", "meta_test", "half_width", "difference", "difference_half_width"]
    found = pd.DataFrame(lines, columns=columns)
    write_text(args.out / "ablation.csv", found.to_csv(index=False, lineterminator="\n"))
    percent = found.set_index("variant").drop(columns="flags") * 100
    rows = [
        [str(name), f"{val:.2f}", f"{mean:.2f} ± {half:.2f}", f"{gap:+.2f} ± {gap_half:.2f}" if name != "as it is" else ""]
        for name, val, mean, half, gap, gap_half in percent.itertuples()
    ]
    print(table(["chorus", "meta_val", "meta_test", "difference"], rows))
    print(f"everything is in {args.out}")


if __name__ == "__main__":
    cli.exit_with_message(main)
