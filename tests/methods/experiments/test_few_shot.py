from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.parametrize(("image_set", "mirrored"), [("cifar100", True), ("glyphs", False)])
def test_a_learner_without_teachers_is_read_as_its_image_set_allows(
    build: Callable[..., Any], image_set: str, mirrored: bool
) -> None:
    experiment = build("random", "--dataset", image_set, "--metalearner", "ncm", "--readout", "whitened", "mirror")
    assert experiment.method.outcome.readout.mirror == mirrored
    assert experiment.method.outcome.readout.matrix is not None
