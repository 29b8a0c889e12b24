import pytest

from methods.teachers.views import SHOWN_AT_ONCE, shown_at_once


@pytest.mark.parametrize(("size", "images"), [(32, SHOWN_AT_ONCE), (84, SHOWN_AT_ONCE), (224, 70), (4096, 1)])
def test_large_images_are_shown_a_few_at_a_time(size: int, images: int) -> None:
    assert shown_at_once(size) == images
