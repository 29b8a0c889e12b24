import json
from collections.abc import Callable
from pathlib import Path

import pytest

import main
from examples import real_zoo


def test_names_are_a_thousand_and_different() -> None:
    assert len(set(real_zoo.class_names())) == 1000


@pytest.mark.slow
def test_real_networks_tell_new_classes_apart(
    tmp_path: Path, write_images: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the packages of requirements-real-zoo.txt are installed: classes of one colour each, nearly all right."""
    pytest.importorskip("efficientnet_lite_pytorch")
    real_zoo.main(str(tmp_path / "zoo"))
    for number in range(3):
        write_images(tmp_path / "mine" / f"c{number}", 6, number, (60, 60))
    flags = f"""
        --method teacher_ncm --teachers {tmp_path}/zoo/zoo.csv --testdataset {tmp_path}/mine --image_size 84 --way_test 3
        --num_sup_train 2 --num_qur_test 3 --episode_test 5 --select_on last --out {tmp_path}/runs --data_root {tmp_path}/root
        --allow_code real_zoo:lite0 real_zoo:lite1 real_zoo:lite2 --run_name real
    """
    main.main(flags.split())
    result = json.loads((tmp_path / "runs" / "real" / "result.json").read_text())
    assert result["teachers"] == 3
    assert result["accuracy"]["mine"]["mean"] > 0.6
