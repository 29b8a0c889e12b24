"""Does a list of teachers hold what it says? Each is loaded, and a few images are shown to it."""

import argparse

from torch import nn

from methods.services.api import NO_LIMITS, api_of
from methods.services.meter import Meter
from methods.teachers.inspection import SHOWN, shown_images
from methods.teachers.manifest import add_pool_flags, find_rows
from methods.teachers.pool import NEVER_TRAINED, TeacherPool, add_teacher_flags
from utils import cli
from utils.errors import UserError
from utils.names import look_alike_notes
from utils.tables import table

HEADER = ["teacher", "arch", "classes", "size", "parameters", "statistics", "verdict"]


def add_check_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("place", nargs="?", help="a teachers.csv or its folder, or a server's URL; the same as --teachers")
    add_pool_flags(parser)
    add_teacher_flags(parser)
    cli.add_machine_flags(parser)


def check(args: argparse.Namespace) -> None:
    """Print a line for each teacher. Raises `UserError` where one cannot be used."""
    pool = TeacherPool(find_rows(args), cli.prepare_machine(args), args.class_order, api_of(args))
    lines = [line_of(pool, teacher_id) for teacher_id in range(len(pool))]
    print(table(HEADER, lines))
    print(f"{len(pool)} teachers, {len(pool.class_names)} different classes")
    for note in look_alike_notes(pool.class_names):
        print(note)
    bad = [line for line in lines if not line[-1].startswith(("good", "doubtful"))]
    if bad:
        place, why = bad[0][0], bad[0][-1]
        first = why if why.startswith(place) else f"{place}: {why}"
        raise UserError(f"{len(bad)} of {len(pool)} teachers cannot be used, first {first}")


def line_of(pool: TeacherPool, teacher_id: int) -> list[str]:
    """What is to be said about a teacher; the last cell begins with "good" or "doubtful", or says what is wrong."""
    row = pool.rows[teacher_id]
    line = [str(row.path), row.arch, str(len(row.class_ids)), str(row.image_size)]
    try:
        if row.listed is not None:
            server = pool.server_of(teacher_id)
            how = server.contact() if server else "answers"
            images = shown_images(row.image_size)[:: SHOWN if server else 1].to(pool.device)  # two of a server: it may cost
            answers = pool.black_box(teacher_id, Meter()).query(images)
            if pool.api == NO_LIMITS and len(answers.unique(dim=0)) == 1:
                raise UserError("answers every image alike: does it want other numbers than 0 to 1, or mean and std?")
            return [*line, "?", "?", f"good: {how}"]
        teacher, finding = pool[teacher_id], pool.finding(teacher_id)
    except UserError as error:
        return [*line, "", "", " ".join(str(error).removeprefix(f"{row.path}: ").split())]
    norms = sum(isinstance(module, nn.BatchNorm2d) and module.track_running_stats for module in teacher.network.modules())
    size = sum(parameter.numel() for parameter in teacher.network.parameters())
    line += [f"{size:,}", f"{norms} layers" if norms else "none"]
    said = [*finding.notes]
    if not finding.invertible:
        said.insert(0, "answers, but passes no gradient to the images: of use as a black box alone")
    elif not norms:
        said.insert(0, "without statistics to invert with (--bn does nothing)")
    verdict = "doubtful" if NEVER_TRAINED in said else "good"
    return [*line, f"{verdict}: " + "; ".join(said) if said else verdict]
