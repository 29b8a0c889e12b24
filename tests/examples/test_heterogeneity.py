from pathlib import Path

import pandas as pd
import pytest
import torch

from datasets.split import ImageSplit
from examples import heterogeneity
from utils.errors import UserError


def test_pairs_share_as_many_classes_as_asked() -> None:
    split = ImageSplit(torch.zeros(1), torch.zeros(1), [f"class {i}" for i in range(12)])
    firsts = []
    for shared in range(6):
        one, other = heterogeneity.pair_of_classes(split, 5, shared, repeat=1)
        assert len(set(one)) == len(set(other)) == 5
        assert len(set(one) & set(other)) == shared
        firsts.append(one)
    assert all(first == firsts[0] for first in firsts)
    assert heterogeneity.pair_of_classes(split, 5, 5, repeat=2)[0] != firsts[0]
    with pytest.raises(UserError, match="cannot share 1 of the 12"):
        heterogeneity.pair_of_classes(split, 8, 1, repeat=0)


@pytest.mark.slow
def test_the_study_ends_with_a_table_and_a_picture(data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = f"""
        --data_root {data_root} --image_size 16 --out {tmp_path} --way 3 --overlaps 0 3 --architectures conv4 resnet10
        --repeats 1 --pretrain_epochs 1 --threads 1 --
        --epochs 1 --inversion_steps 1 --num_recover 4 --probe_images 3 --probe_steps 1 --patience 1
        --num_qur_train 2 --num_qur_test 2 --episode_test 3 --episode_val 3 --episode_batch 1 --inner_update_num 1
        --test_inner_update_num 1 --no_floors
    """.split()
    heterogeneity.main(argv)
    lines = pd.read_csv(tmp_path / "heterogeneity.csv")
    assert lines.compared.tolist() == ["overlap"] * 2 + ["architecture"] * 3
    assert lines.architectures.tolist()[2:] == ["conv4+conv4", "conv4+resnet10", "resnet10+resnet10"]
    assert lines.accuracy.between(0, 1).all()
    unlike = lines.dissimilarity[lines.shared < 3]  # at 3 both are the same teacher
    assert unlike.isna().all()  # the default probe is other teachers, and a pair has none
    assert (tmp_path / "heterogeneity.png").stat().st_size > 1000
    assert "conv4+resnet10, 0 shared" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("best.pt")}
    (tmp_path / "conv4+conv4-shared3-repeat0" / "result.json").unlink()  # as after a kill: the run is gone on with
    heterogeneity.main(argv)  # finished teachers and runs are kept
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("best.pt")}
    assert pd.read_csv(tmp_path / "heterogeneity.csv").equals(lines)
