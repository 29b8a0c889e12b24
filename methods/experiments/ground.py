"""What a few-shot run stands on, which must be as it was when it goes on, or is scored again."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets.registry import DatasetSpec
from datasets.split import class_names_of, digest_of_files
from methods.metalearners.learner import LearnerSpec
from methods.teachers.manifest import TeacherRow
from methods.teachers.pool import TeacherPool
from utils import checkpoint


def ground_of(pool: TeacherPool, spec: LearnerSpec, domains: Sequence[DatasetSpec], data_root: Path) -> list[str]:
    """A line each of the teachers, in their order, their classes and weights, and of the images, as they are now.

    Of a service its classes alone: it may move, and has versions of its own. Files may be written anew while a run trains.
    """
    lines = []
    for number, row in enumerate(pool.rows):
        said = [f"the teacher {row.path.name} of {', '.join(row.class_keys)}"]
        if not row.is_asked:
            weights, code = (content[:12] for content in pool.content_of(number))
            said += [f"weights {weights}", _form(row), *([f"code {code}"] if code else [])]
        lines.append(", ".join(said))
    lines.append(f"images of {_form(spec)}")
    if not len(pool):
        for domain in domains:
            names, files = class_names_of(domain, "meta_train", data_root), digest_of_files(domain, "meta_train", data_root)
            lines.append(f"images of {domain.name}: {', '.join(names)}, {files[:12]}")
    return lines


def _form(images: LearnerSpec | TeacherRow) -> str:
    """Size and normalisation of images, for people."""
    mean, std = (";".join(f"{value:g}" for value in values) for values in (images.mean, images.std))
    return f"{images.image_size} pixels, mean {mean}, std {std}"


def kept_form(spec: LearnerSpec, run: Path | None) -> LearnerSpec:
    """The spec with size and normalisation of the learner that a run has kept: a folder of images may have changed since."""
    best = None if run is None else run / "best.pt"
    kept: Any = checkpoint.load(best) if best is not None and best.is_file() else None
    for name in ("learner", "spec"):
        kept = kept.get(name) if isinstance(kept, dict) else None
    names = ("image_size", "mean", "std")
    if not isinstance(kept, dict) or kept.get("arch") != spec.arch or not set(names) <= kept.keys():
        return spec  # of teachers side by side, of before the first look, or damaged, which is said elsewhere
    return replace(spec, **{name: kept[name] for name in names})
