"""The flags that all whole-class methods share: those of Fast-Datafree's commands."""

import argparse
from pathlib import Path

from datasets.registry import DATA_ROOT
from methods.teachers.pool import add_allow_code_flag
from models import BACKBONES
from utils import cli


def add_whole_class_flags(parser: argparse.ArgumentParser) -> None:
    """Set, networks, the student's training, its exam, and where everything goes."""
    networks = f"{', '.join(BACKBONES)}, torchvision/NAME or timm/NAME"
    group = parser.add_argument_group("set and networks")
    group.add_argument("--dataset", default="cifar100", help="cifar10, cifar100 (whole sets) or imagenet")
    cli.may_change("always", group.add_argument("--data_root", type=Path, default=DATA_ROOT, help="folder of image sets"))
    group.add_argument("--image_size", type=cli.count, help="images' height and width (default: the set's own)")
    group.add_argument("--num_classes", type=cli.count, help="the teacher's classes, where there are no test images")
    group.add_argument("--teacher", default="wrn40_2", help=f"the teacher's architecture: {networks}")
    group.add_argument("--student", "--model", dest="student", default="wrn16_1", help="the student's, named alike")
    group.add_argument(
        "--teacher_ckpt", type=Path, help="the teacher's file (default: checkpoints/pretrained/<set>_<arch>.pth)"
    )
    group.add_argument("--pretrained", action="store_true", help="take torchvision's weights for the teacher")
    group.add_argument("--student_ckpt", type=Path, help="weights that the student starts from")
    add_allow_code_flag(group)

    group = parser.add_argument_group("the student's training")
    cli.may_change(
        "resume", group.add_argument("--epochs", "--epoch", dest="epochs", type=cli.count, default=200, help="epochs")
    )
    group.add_argument("-b", "--batch_size", dest="batch_size", type=cli.count, default=128, help="images of a step")
    group.add_argument("--lr", "--learning_rate", dest="lr", type=cli.rate, default=0.1, help="learning rate (SGD)")
    group.add_argument("--momentum", type=cli.number(0, 1), default=0.9, help="momentum")
    group.add_argument("--wd", "--weight_decay", dest="weight_decay", type=cli.number(0), default=1e-4, help="weight decay")

    group = parser.add_argument_group("evaluation")
    group.add_argument("--evaluate_only", action="store_true", help="score the student as it is (--student_ckpt) and stop")
    group.add_argument(
        "--select_on", choices=("last", "agreement", "test"), default="last",
        help="what picks the student: the last epoch, agreement with the teacher on images that are not of the test split, or "
        "the test split itself as in the papers' code, which marks the result",
    )  # fmt: skip
    group.add_argument("--val_interval", type=cli.count, default=10, help="epochs between validations")
    group.add_argument("--save_images", action="store_true", help="write grids of pseudo-images at every validation")
    group.add_argument(
        "--embed_plot", nargs="?", const="tsne", choices=("tsne", "pca"),
        help="picture of the teacher's features of synthetic and real images (tsne or pca)",
    )  # fmt: skip
    group.add_argument("--no_floors", action="store_true", help="leave the teacher's own accuracy out of the report")

    group = parser.add_argument_group("places and what does nothing")
    group.add_argument("--save_dir", type=Path, help="the run directory; must be new")
    group.add_argument("--log_tag", default="", help="added to the name of the run")
    for name in ("world_size", "rank", "dist_url", "dist_backend"):
        cli.without_effect(group, f"--{name}", reason="one process trains one student")
    cli.without_effect(group, "--multiprocessing_distributed", action="store_true", reason="one process trains one student")
    cli.without_effect(group, "--start_epoch", reason="a run goes on with --resume RUN, which restores everything")
    in_memory = "images lie decoded in memory; nothing is loaded beside the training"
    cli.without_effect(group, "-j", "--workers", dest="workers", reason=in_memory)
    shown = "the progress bar and metrics.jsonl show every epoch"
    cli.without_effect(group, "-p", "--print_freq", dest="print_freq", reason=shown)
    cli.without_effect(group, "--fp16", action="store_true", reason="training runs in float32")
