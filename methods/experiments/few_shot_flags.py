"""The flags that all few-shot methods share, and those of meta-training by replay."""

import argparse

from methods.metalearners import METALEARNERS
from methods.metalearners.readout import READOUTS
from models import model_names
from utils import cli


def add_replay_flags(group: argparse._ArgumentGroup) -> None:
    """What `Replay` reads."""
    group.add_argument(
        "--generate_interval", "--patience", dest="patience", type=cli.count, default=10,
        help="replay updates without a better accuracy before new teachers come",
    )  # fmt: skip
    add_augment_flag(group)


def add_teacher_batch_flag(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--num_teacher", "--teacher_batch", dest="teacher_batch", type=cli.count, default=4, help="teachers of an iteration"
    )


def add_augment_flag(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--augment", action="store_true", help="crop and mirror pseudo-images in meta-training, too")


def add_few_shot_flags(parser: argparse.ArgumentParser, counts_episodes: bool = False) -> None:
    """Episodes, the metalearner, evaluation and length: the flags that all few-shot methods share."""
    group = parser.add_argument_group("episodes")
    for part in ("train", "test"):
        way = group.add_argument(f"--way_{part}", type=cli.count, default=5, help=f"classes of a {part} episode")
        shot = group.add_argument(
            f"--num_sup_{part}", f"--shot_{part}", dest=f"shot_{part}", type=cli.count, default=None if part == "test" else 1,
            help="labelled images of a class" + (" (default: as in training)" if part == "test" else ""),
        )  # fmt: skip
        query = group.add_argument(
            f"--num_qur_{part}", f"--query_{part}", dest=f"query_{part}", type=cli.count, default=15, help="queries of a class"
        )
        if part == "test":
            cli.may_change("evaluate", way, shot, query)
    cli.may_change("always", group.add_argument("--episode_test", type=cli.whole(2), default=600, help="episodes of meta_test"))
    group.add_argument("--episode_val", type=cli.count, default=200, help="episodes of each validation on meta_val")

    group = parser.add_argument_group("meta-training")
    group.add_argument("--backbone", default="conv4", help=f"the learner's architecture: {', '.join(model_names())}")
    group.add_argument("--teacherMethod", "--metalearner", dest="metalearner", default="maml", help=", ".join(METALEARNERS))
    group.add_argument("--inner_lr", type=cli.rate, default=0.01, help="learning rate of the inner loop")
    group.add_argument("--outer_lr", type=cli.rate, default=1e-3, help="learning rate of the outer loop (Adam)")
    group.add_argument(
        "--inner_update_num", "--inner_steps", dest="inner_steps", type=cli.count, default=5, help="inner steps in training"
    )
    steps = group.add_argument(
        "--test_inner_update_num", "--test_inner_steps", dest="test_inner_steps", type=cli.count, default=10,
        help="inner steps in evaluation",
    )  # fmt: skip
    cli.may_change("evaluate", steps)
    group.add_argument("--approx", "--first_order", dest="first_order", action="store_true", help="first-order MAML")
    piece = group.add_argument(
        "--compile", choices=("auto", "on", "off"), default="auto",
        help="make one piece of an outer step's small operators (torch.compile); auto: on a card",
    )  # fmt: skip
    cli.may_change("always", piece)
    group.add_argument("--episode_batch", type=cli.count, default=10, help="episodes of an outer update")
    if counts_episodes:
        length = group.add_argument("--episode_train", type=cli.count, default=60_000, help="episodes of the whole run")
    else:
        length = group.add_argument("--epochs", type=cli.count, default=1000, help="iterations")
    cli.may_change("resume", length)
    group.add_argument("--start_id", type=cli.whole(0), default=1, help="accepted for the papers' scripts; only 1 makes sense")

    group = parser.add_argument_group("evaluation")
    tested = group.add_argument("--testdataset", help="image set of meta_val and meta_test (default: --dataset), or a folder")
    cli.may_change("evaluate", tested)
    unit = "episodes" if counts_episodes else "iterations"
    group.add_argument("--val_interval", type=cli.count, default=20, help=f"{unit} between validations on meta_val")
    group.add_argument(
        "--select_on", choices=("meta_val", "meta_test", "pseudo", "last"), default="meta_val",
        help="what picks the learner; pseudo: episodes of pseudo-images; meta_test as in the papers' code (which is marked)",
    )  # fmt: skip
    group.add_argument("--inductive", action="store_true", help="normalise queries by the support's statistics")
    group.add_argument("--no_floors", action="store_true", help="leave the floors out of the report")
    readout = group.add_argument(
        "--readout", nargs="+", choices=READOUTS, default=["plain"],
        help="how embeddings are read by protonet and ncm: mirror, over an image and its mirror image (where the image set "
        "allows that); whitened, half whitened on images of nobody",
    )  # fmt: skip
    cli.may_change("evaluate", readout)
    judge = group.add_argument(
        "--judge", action="store_true", help="ask a network trained on real images what it sees in the recovered"
    )
    cli.may_change("always", judge)
    group.add_argument("--save_images", action="store_true", help="write grids of pseudo-images at every validation")
    cli.without_effect(
        group,
        "--save_interval",
        type=int,
        reason="a checkpoint is written at every validation and every minute between",
    )
