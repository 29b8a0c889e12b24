import pytest

from utils import names
from utils.errors import UserError


def test_blanks_and_ways_of_writing_a_letter_are_no_difference() -> None:
    assert names.tidy(" snow  owl ") == "snow owl"
    assert names.tidy("cafe\u0301") == names.tidy("caf\u00e9")
    assert names.tidy("Owl") != names.tidy("owl")
    for bad in ("", "  ", "a;b", "a\x00b"):
        with pytest.raises(UserError, match=r"list\.csv"):
            names.tidy_class(bad, "list.csv")


def test_lists_that_differ_are_shown_both() -> None:
    names.check_same_classes(["a", "b"], ["b ", "a"], "one", "two")
    with pytest.raises(UserError, match=r"one alone has Bird, cat; two alone has bird, dog \(Bird and bird look alike"):
        names.check_same_classes(["a", "cat", "Bird"], ["bird", "a", "dog"], "one", "two")
    with pytest.raises(UserError, match="one has the classes in the order a, b; two in the order b, a"):
        names.check_same_order(["a", "b"], ["b", "a"], "one", "two")
    names.check_same_order(["a", "b"], [" a", "b"], "one", "two")


def test_names_that_look_alike() -> None:
    assert names.look_alikes(["Sea_Lion", "sea lion", "owl", "seal"]) == [("Sea_Lion", "sea lion")]
    assert names.look_alikes(["owl", "o\u00adwl", "\uff4f\uff57\uff4c"]) == [
        ("owl", "o\u00adwl"),
        ("owl", "\uff4f\uff57\uff4c"),
    ]
    with pytest.raises(UserError, match="a list: owl stands there twice"):
        names.different_classes(["owl", "wren", "owl "], "a list")
