"""What the pages in docs/ show must work."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import main
import methods

DOCS = Path(__file__).resolve().parents[1] / "docs"


def test_the_example_of_a_method_runs(
    flags_for: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (DOCS / "extending.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    (tmp_path / "example_method.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(methods.REGISTRY, ("few_shot", "mine"), "example_method:Mine")
    main.main([*flags_for("mine"), "--no_floors", "--augment", "--steps", "3"])
    assert list((tmp_path / "runs").glob("*/result.json"))


def test_links_and_pictures_are_there() -> None:
    for page in [*DOCS.glob("*.md"), DOCS.parent / "README.md"]:
        for target in re.findall(r"\]\(([\w./:-]+)\)", page.read_text(encoding="utf-8")):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name} points to {target}"
