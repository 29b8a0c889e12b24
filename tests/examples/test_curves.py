from collections.abc import Callable
from pathlib import Path

import pytest

import main
from examples import curves
from utils.errors import UserError


@pytest.mark.slow
def test_a_line_for_each_method_and_a_point_for_each_run(flags_for: Callable[..., list[str]], tmp_path: Path) -> None:
    for number in ("32", "48"):
        main.main([*flags_for("chorus"), "--black_box", "--num_images", number, "--run_name", f"chorus-{number}"])
    main.main([*flags_for("random"), "--run_name", "random"])
    runs = [str(path) for path in sorted((tmp_path / "runs").glob("*-*"))] + [str(tmp_path / "runs" / "random")]
    for against in curves.COSTS:
        curves.main([*runs, "--against", against, "--out", str(tmp_path / f"{against}.png")])
        assert (tmp_path / f"{against}.png").stat().st_size > 5000
    first = curves.read(Path(runs[0]))
    assert curves.COSTS["queries"](first) == 2 * 32 * 2  # mirror images too, of two teachers
    assert curves.COSTS["minutes"](first) > 0
    with pytest.raises(UserError, match="holds no finished run"):
        curves.main([str(tmp_path)])
