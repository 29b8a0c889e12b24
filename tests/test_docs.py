"""What the pages in docs/ show must work."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import datasets.registry
import main
import methods.inversion.terms
import methods.metalearners
import models
import pretrain
from methods.runs import options
from utils.errors import UserError

DOCS = Path(__file__).resolve().parents[1] / "docs"
Flags = Callable[..., list[str]]


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """example(name): the code of docs/extending.md that begins with that file's name, in a file; tables are put back later."""
    tables = ((datasets.registry, "SPECS"), (models, "BACKBONES"), (methods.inversion.terms, "TERMS"))
    for owner, table in (*tables, (methods.metalearners, "METALEARNERS")):
        before = dict(getattr(owner, table))
        for name in before:
            monkeypatch.setitem(getattr(owner, table), name, before[name])
    blocks = (DOCS / "extending.md").read_text(encoding="utf-8").split("```python\n")[1:]
    by_name = {block.splitlines()[0].removeprefix("# "): block.split("```")[0] for block in blocks}

    def written(name: str) -> Path:
        (tmp_path / name).write_text(by_name[name])
        return tmp_path / name

    return written


def run_code(file: Path) -> None:
    exec(compile(file.read_text(), str(file), "exec"), {"__name__": file.stem})


def test_a_method_from_outside_the_tree(
    example: Callable[[str], Path], flags_for: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs, is validated, resumed and scored again; and never without being allowed by name."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    place = f"{example('my_method.py')}:Mine"
    flags = [*flags_for("real"), "--no_floors", "--augment", "--steps", "3", "--bn", "0.1"]
    flags[1] = place
    with pytest.raises(UserError, match=r"my_method\.py:Mine runs code; if it is yours, add --allow_code"):
        main.main(flags)
    allowed = ["--allow_code", place]
    main.main([*flags, *allowed])
    run = tmp_path / "runs" / "mine-cifar100-3w1s-conv4"
    assert json.loads((run / "result.json").read_text())["paper"] == "Somebody et al., Somewhere 2027"
    with pytest.raises(UserError, match="add --allow_code"):
        main.main(["--evaluate", str(run)])
    main.main(["--evaluate", str(run), *allowed])
    main.main(["--resume", str(run), "--epochs", "3", *allowed])
    (tmp_path / "faulty.py").write_text("raise ValueError('not today')\n")
    for wrong, words in (
        (f"{tmp_path}/none.py:Mine", "expected FILE.py:CLASS"),
        (f"{tmp_path}/faulty.py:Mine", "ValueError: not today; expected FILE.py:CLASS"),
        ("json:JSONDecoder", "is no method"),
    ):
        with pytest.raises(UserError, match=words):
            main.main(["--method", wrong, "--allow_code", wrong])


def test_a_backbone_is_one_row(
    example: Callable[[str], Path], data_root: Path, flags_for: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its teachers are trained by its own recipe, and it is a learner."""
    monkeypatch.delitem(models.BACKBONES, "two", raising=False)
    run_code(example("my_backbone.py"))
    monkeypatch.setitem(models.BACKBONES, "two", models.BACKBONES.pop("two"))
    (tmp_path / "cifar100").symlink_to(data_root / "cifar100")
    own = ["--data_root", str(tmp_path), "--pre_backbone", "two"]
    pretrain.main([*own, "--way_pretrain", "3", "--pre_model_num", "2", "--image_size", "16", "--pretrain_epochs", "1"])
    main.main([*flags_for("free"), *own, "--backbone", "two", "--no_floors"])
    assert (tmp_path / "runs" / "free-cifar100-3w1s-two" / "result.json").is_file()
    from methods.teachers.pretraining import Recipe, make_optimizer

    assert isinstance(make_optimizer([torch.nn.Parameter(torch.ones(1))], "two", Recipe())[0], torch.optim.Adam)


def test_a_metalearner_is_one_row(
    example: Callable[[str], Path], flags_for: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_code(example("my_metalearner.py"))
    table = methods.metalearners.METALEARNERS
    monkeypatch.setitem(table, "ridge", table.pop("ridge"))
    main.main([*flags_for("free"), "--metalearner", "ridge"])
    assert json.loads((tmp_path / "runs" / "free-cifar100-3w1s-conv4" / "result.json").read_text())["metalearner"] == "ridge"
    for method, *flags in (["free", "--readout", "mirror"], ["teacher_ncm"]):
        with pytest.raises(UserError, match="class means"):
            main.main([*flags_for(method), *flags, "--metalearner", "ridge"])


def test_the_rooms_are_a_library(example: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_code(example("my_notebook.py"))
    assert (tmp_path / "class3.png").stat().st_size > 1000


@pytest.mark.parametrize("method", ["free", "tgr", "purer", "chorus", "bidf_mkd", "cmi"])
def test_a_loss_term_is_one_row(
    method: str, example: Callable[[str], Path], flags_for: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_code(example("my_term.py"))
    table = methods.inversion.terms.TERMS
    monkeypatch.setitem(table, "confidence", table.pop("confidence"))
    flags = [flag for flag in flags_for(method) if flag != "--ZO"]
    main.main([*flags, "--confidence", "0.5", "--no_floors"])
    assert list((tmp_path / "runs").glob("*/result.json"))


def test_an_image_set_is_one_row(
    example: Callable[[str], Path], data_root: Path, flags_for: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_code(example("my_set.py"))
    table = datasets.registry.SPECS
    monkeypatch.setitem(table, "shapes", table.pop("shapes"))
    (tmp_path / "cifar100").symlink_to(data_root / "cifar100")
    lists = tmp_path / "shapes" / "split"
    lists.mkdir(parents=True)
    for split in ("meta_train", "meta_val", "meta_test"):
        (lists / f"{split}.csv").write_text((data_root / "cifar100" / "split" / f"{split}.csv").read_text())
    own = ["--data_root", str(tmp_path), "--dataset", "shapes"]
    pretrain.main([*own, "--way_pretrain", "3", "--pre_model_num", "2", "--pretrain_epochs", "1"])
    main.main([*flags_for("free"), *own])
    result = json.loads((tmp_path / "runs" / "free-shapes-3w1s-conv4" / "result.json").read_text())
    assert list(result["accuracy"]) == ["shapes"]


def test_links_and_pictures_are_there() -> None:
    for page in [*DOCS.glob("*.md"), *DOCS.parent.glob("*.md")]:
        for target in re.findall(r"\]\(([\w./:-]+)\)", page.read_text(encoding="utf-8")):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name} points to {target}"


def test_the_page_of_options_is_that_of_the_parsers() -> None:
    same = (DOCS / "options.md").read_text(encoding="utf-8") == options.page()
    assert same, "run python -m methods.runs.options > docs/options.md"


def test_a_switch_says_whether_it_is_on_where_nobody_types_it() -> None:
    rows = options.rows_of("purer")
    assert [rows[flag][2] for flag in ("--adv", "--no_adv", "--no_clamp")] == ["on", "off", "off"]
