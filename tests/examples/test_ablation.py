from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from examples import ablation


@pytest.mark.slow
def test_every_variant_runs_and_is_compared(
    flags_for: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*flags_for("chorus"), "--num_images", "128"]  # a quarter fills a batch
    del flags[:2], flags[flags.index("--out") : flags.index("--out") + 2]
    ablation.main(["--out", str(tmp_path / "study"), "--", *flags, "--no_floors"])
    found = pd.read_csv(tmp_path / "study" / "ablation.csv")
    assert found.variant.tolist() == [name for name in ablation.VARIANTS if not name.startswith("teachers: ")]
    assert found.meta_val.between(0, 1).all()
    assert found.difference[0] == 0
    told = capsys.readouterr()
    assert "images: procedural alone" in told.out
    assert "note: teachers: 5 is left out: --pre_model_num 5: teachers found: 2" in told.err
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "study").rglob("result.json")}
    ablation.main(["--out", str(tmp_path / "study"), "--only", "real", "--", *flags, "--no_floors"])
    assert len(pd.read_csv(tmp_path / "study" / "ablation.csv")) == 2
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "study").rglob("result.json")} == before
