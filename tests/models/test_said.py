from typing import Any

import pytest
import torch

from models.said import Said, check_said, said_in
from utils.errors import UserError

WANTED = ["owl", "kite", "wren"]
FORM = (32, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))


@pytest.mark.parametrize(
    "place",
    [
        {"idx2label": {0: "owl", 1: "kite", 2: "wren"}}, {"class2idx": {"kite": 1, "owl": 0, "wren": 2}},
        {"classToIdx": {"kite": 1, "owl": 0, "wren": 2}}, {"index_to_name": {"0": "owl", "1": "kite", "2": "wren"}},
        {"label_map": {"owl": 0, "wren": 2, "kite": 1}}, {"label_map": {0: "owl", 2: "wren", 1: "kite"}},
        {"classnames": WANTED}, {"class_names": [name.encode() for name in WANTED]}, {"categories": "owl;kite;wren"},
        {"classes": "owl\nkite\nwren\n"}, {"classes": "owl, kite, wren"}, {"classes": b'["owl", "kite", "wren"]'},
        {"id2label": '{"0": "owl", "1": "kite", "2": "wren"}'},
    ],
    ids=str,
)  # fmt: skip
def test_classes_in_whatever_form(place: dict[str, Any]) -> None:
    assert said_in([place]).class_names == [WANTED]


@pytest.mark.parametrize("place", [{"names": "notes, of a person"}, {"classes": "3"}, {"vocab": 5}, {"note": WANTED}], ids=str)
def test_what_is_no_list_of_classes(place: dict[str, Any]) -> None:
    assert said_in([place]).class_names == []


def test_labels_of_images_are_no_classes() -> None:
    assert said_in([{"labels": torch.tensor([0, 1, 1, 0]), "names": ["a", "b", "a"]}]) == Said()


def test_the_key_says_which_side_is_the_number() -> None:
    """Where names are numbers, too."""
    assert said_in([{"class_to_idx": {0: 1, 1: 2, 2: 0}}]).class_names == [["2", "0", "1"]]
    assert said_in([{"label2id": {1: 0, 10: 1, 2: 2}}]).class_names == [["1", "10", "2"]]
    assert said_in([{"idx_to_class": {0: 1, 1: 2, 2: 0}}]).class_names == [["1", "2", "0"]]


def check(place: dict[str, Any], arch: str = "torchvision/resnet18") -> None:
    check_said(said_in([place]), WANTED, *FORM, arch, "file")


@pytest.mark.parametrize(
    "place",
    [
        {"img_size": "64"}, {"input_size": (3, 64, 64)}, {"image_mean": [0.1] * 3, "image_std": [0.2] * 3},
        {"mean": "0.1,0.4,0.3", "std": "0.2,0.2,0.2"}, {"pixel_mean": torch.tensor([25.0] * 3), "pixel_std": [51.0] * 3},
        {"arch": "resnet34"}, {"class_names": ["kite", "owl", "wren"]}, {"class_list": ["kite", "owl", "wren"]},
        {"image_size": {"height": 64, "width": 64}}, {"input_shape": (3, 64, 64)}, {"resolution": 64}, {"crop_size": 64},
        {"input_mean": [0.1] * 3, "input_std": [0.2] * 3}, {"rgb_mean": [0.5] * 3, "rgb_std": [0.2] * 3},
        {"means": [0.5, 0.4, 0.3], "stds": [0.1] * 3}, {"mean": [0.5, 0.4, 0.2], "stdev": [0.2] * 3},
        {"mean": [0.7], "std": [0.2]},
    ],
    ids=str,
)  # fmt: skip
def test_what_contradicts_the_list_is_refused(place: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^file "):
        check(place)


@pytest.mark.parametrize(
    "place",
    [
        {"image_size": (3, 32, 32)}, {"img_size": "32x32"}, {"mean": 0.87}, {"std": 1.5, "loss": 0.1}, {"arch": "ResNet"},
        {"arch": "torchvision.models.resnet18"}, {"arch": "resnet18.a1_in1k"},
        {"input_size": 3}, {"input_size": 784}, {"img_size": 0}, {"arch": "ConvNet"}, {"arch": "baseline_v2"},
        {"mean": 0.84, "std": 0.02}, {"id2label": {0: "LABEL_0", 1: "LABEL_1"}}, {"names": ["conv1", "bn1"]},
        {"labels": ["train", "val"]}, {"classes": {"names": WANTED}}, {"vocab": {"itos": WANTED}},
        {"image_size": 36, "crop_size": 32},
        {"class_counts": {"owl": 10, "kite": 20, "wren": 5}}, {"all_classes": sorted(WANTED), "classes": WANTED},
        {"input_size": (1, 3, 32, 32)}, {"image_size": (32, 32, 3)}, {"mean": [127.5, 102, 76.5], "std": [51, 51.0, 51]},
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_contradict_it_passes(place: dict[str, Any]) -> None:
    check(place)


def test_an_architecture_may_be_nobodys_business() -> None:
    check({"arch": "yolo"}, "")
    assert said_in([]) == Said()


def test_mean_and_std_of_bytes_are_brought_to_shares_together() -> None:
    said = said_in([{"mean": [127.5, 102.0, 76.5], "std": [1.0, 1.0, 1.0]}])
    check_said(said, WANTED, 32, (0.5, 0.4, 0.3), (1 / 255,) * 3, "", "file")


def test_numbers_are_names_only_where_the_list_has_the_same() -> None:
    said = said_in([{"classes": [1, 10, 2]}])
    check_said(said, ["owl", "kite", "wren"], *FORM, "", "file")
    check_said(said, ["1", "10", "2"], *FORM, "", "file")
    with pytest.raises(UserError, match="in the order 1, 10, 2"):
        check_said(said, ["1", "2", "10"], *FORM, "", "file")


def test_other_classes_than_the_listed_are_refused_under_keys_that_mean_them() -> None:
    with pytest.raises(UserError, match="alone has finch"):
        check({"classes": ["owl", "kite", "finch"]})
    check({"class_groups": ["owl", "kite", "finch"]})
