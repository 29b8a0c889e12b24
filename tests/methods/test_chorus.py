import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import main
from methods.chorus import Chorus
from utils import room
from utils.errors import UserError
from utils.images import to_float

Flags = Callable[..., list[str]]


Prepared = Callable[..., Chorus]


@pytest.fixture
def prepared(build: Callable[..., Any], tmp_path: Path) -> Callable[..., Chorus]:
    def made(*flags: str) -> Chorus:
        method = build("chorus", *flags).method
        method.prepare(tmp_path)
        return method

    return made


@pytest.mark.parametrize("mirror", [True, False])
def test_the_targets_are_what_every_teacher_says_in_order(prepared: Prepared, mirror: bool) -> None:
    """An image and its mirror image are told the mean of what is said of both."""
    method = prepared(*[] if mirror else ["--no_mirror"])
    assert method.images.shape == (128 if mirror else 64, 3, 16, 16)
    if mirror:
        assert torch.equal(method.images[64:], method.images[:64].flip(-1))
    x, start = to_float(method.images), 0
    for teacher_id in range(len(method.teachers)):
        teacher = method.teachers[teacher_id]
        logits = teacher(x)
        said = F.normalize(logits - logits.mean(1, keepdim=True))
        if mirror:
            said = ((said[:64] + said[64:]) / 2).repeat(2, 1)
        part = method.targets[:, start : start + teacher.way].float()
        assert torch.allclose(part, said, atol=2e-3)
        start += teacher.way
    assert start == method.targets.shape[1] == method.learner.spec.way


def test_images_and_targets_that_do_not_fit_into_memory_are_streamed_from_files(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = [prepared("--sources", "procedural")]
    monkeypatch.setattr(room, "memory_of", lambda device: 1)
    methods.append(prepared("--sources", "procedural"))
    for name in ("images", "targets"):
        one, other = (getattr(method, name) for method in methods)
        assert torch.equal(one, other)
        assert one.is_shared() is False
        assert other.is_shared() is True
    learnt = []
    for method in methods:
        torch.manual_seed(0)
        method.train_iteration(0)
        learnt.append(method.learner.params)
    for name, value in learnt[0].items():
        assert torch.equal(value, learnt[1][name]), name
    assert not list(tmp_path.rglob(".room-*"))


def test_its_floor_is_a_network_of_random_numbers_that_is_read_as_it_is(flags_for: Flags, tmp_path: Path) -> None:
    main.main([*flags_for("chorus"), "--run_name", "read"])
    main.main([*flags_for("chorus"), "--readout", "plain", "--run_name", "plain"])
    floors = [json.loads((tmp_path / "runs" / name / "result.json").read_text())["yardsticks"] for name in ("read", "plain")]
    plain, read = "random learner, adapted", "random learner, read the same way"
    means = [{label: line[label]["cifar100"]["mean"] for label in (plain, read) if label in line} for line in floors]
    assert means[0].keys() == {plain, read}
    assert means[1] == {plain: means[0][plain]}


def test_a_black_box_is_asked_once_about_every_image_and_its_mirror_image(prepared: Prepared) -> None:
    """The answers, and so the learner, are those of white boxes; the budget limits the images."""

    def asked(method: Chorus) -> dict[str, float] | None:
        return method.summary().get("asked_of_services")

    sources = ("--sources", "procedural")
    white, black = prepared(*sources), prepared(*sources, "--black_box")
    assert torch.equal(white.targets, black.targets)
    assert asked(white) is None
    assert asked(black) == {"queries": 2 * 64 * 2, "calls": 2, "queries_per_image": 4}
    once = prepared(*sources, "--black_box", "--no_mirror")
    assert asked(once) == {"queries": 64 * 2, "calls": 2, "queries_per_image": 2}
    small = prepared(*sources, "--black_box", "--query_budget", "100")
    assert len(small.images) == 2 * 25
    with pytest.raises(UserError, match="do not fill a batch"):
        prepared(*sources, "--black_box", "--query_budget", "10")


@pytest.mark.parametrize("extra", [["--sources", "pixel"], ["--targets", "features"]])
def test_a_black_box_is_not_looked_into(flags_for: Flags, extra: list[str]) -> None:
    with pytest.raises(UserError, match="--black_box"):
        main.parse_args([*flags_for("chorus"), "--black_box", *extra])


@pytest.mark.parametrize("source", ["pixel", "generator", "procedural", "natural", "photos", "real"])
@pytest.mark.parametrize("goal", [["--targets", "features"], ["--loss", "relational"]])
def test_every_source_with_every_goal(source: str, goal: list[str], flags_for: Flags, tmp_path: Path) -> None:
    main.main([*flags_for("chorus"), "--sources", source, *goal, "--no_floors"])
    result = json.loads(next((tmp_path / "runs").glob("*/result.json")).read_text())
    assert ("real images" in result["examined"]) == (source == "real")
    assert 0 <= result["accuracy"]["cifar100"]["mean"] <= 1


def test_images_are_made_once_and_do_not_move_the_run(build: Callable[..., Any], prepared: Prepared, tmp_path: Path) -> None:
    def kept() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.pt")}

    method = build("chorus").method
    before = torch.get_rng_state()
    method.prepare(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    files = kept()
    assert len(files) == 4  # of each of two teachers its images and its answers
    assert torch.equal(prepared().images, method.images)
    assert kept() == files
    assert not torch.equal(prepared("--seed", "1").images, method.images)


def test_teachers_of_any_number_of_classes_are_welcome(flags_for: Flags, tmp_path: Path) -> None:
    """No head has to fit: the learner has an output for each class of each teacher."""
    main.main([*flags_for("chorus"), "--way_train", "2", "--way_test", "4", "--num_class_per_task", "3"])
    assert list((tmp_path / "runs").glob("*/result.json"))


def test_it_learns_what_tells_new_classes_apart(flags_for: Flags, tmp_path: Path) -> None:
    flags = [*flags_for("chorus", 30), "--num_images", "256", "--val_interval", "30", "--episode_test", "40"]
    main.main(flags)
    result = json.loads(next((tmp_path / "runs").glob("*/result.json")).read_text())
    lines = [json.loads(line) for line in next((tmp_path / "runs").glob("*/metrics.jsonl")).read_text().splitlines()]
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    assert result["accuracy"]["cifar100"]["mean"] > 0.5  # of three classes that differ in colour


def test_the_length_of_its_rates_cycle_stays(flags_for: Flags, tmp_path: Path) -> None:
    main.main([*flags_for("chorus", 2), "--no_floors", "--run_name", "one"])
    with pytest.raises(UserError, match="--epochs cannot change"):
        main.main(["--resume", str(tmp_path / "runs/one"), "--epochs", "4"])


def test_fewer_inverted_images_than_teachers(build: Callable[..., Any]) -> None:
    images = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    build("chorus", "--sources", "pixel").method.sources.draw(images)  # of the first teacher alone
    assert images.any()


def test_rows_of_the_picture_are_called_as_they_were_drawn(prepared: Prepared) -> None:
    method = prepared("--sources", "natural", "procedural", "natural")
    assert list(method.pictures()["images"].rows) == ["natural", "natural", "procedural"]


def test_a_run_that_another_optimizer_began_asks_nobody(build: Callable[..., Any], tmp_path: Path) -> None:
    method = build("chorus").method
    method.student.begun_by_another = True
    with pytest.raises(UserError, match="start a new one"):
        method.prepare(tmp_path)
    assert method.meter.queries == 0
