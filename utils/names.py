"""Names: when two classes are one, when two lists are the same, which pairs a reader would take for one, what was meant."""

import difflib
import itertools
import re
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from utils.errors import UserError

JOINERS = "\u200c\u200d"  # unseen signs that are part of words: Persian, Hindi
SHOWN = 5  # names of a list that an error shows


def tidy(name: str) -> str:
    """A name as it is compared: letters composed (NFC), no blanks at its ends, single ones inside."""
    return " ".join(unicodedata.normalize("NFC", name).split())


def tidy_class(name: str, source: str) -> str:
    """The same, for a name that is going to stand in lists. Raises `UserError` naming `source` where it cannot."""
    plain = tidy(name)
    if not plain or ";" in plain or not all(sign.isprintable() or sign in JOINERS for sign in plain):
        raise UserError(f"{source}: {name!r} cannot be a class name: expected letters to read, and no semicolon")
    return plain


def different_classes(names: Iterable[str], source: str) -> tuple[str, ...]:
    """The same of all classes of one classifier. Raises `UserError` where one stands there twice."""
    plain = tuple(tidy_class(name, source) for name in names)
    if twice := [name for place, name in enumerate(plain) if name in plain[:place]]:
        raise UserError(f"{source}: {shown(dict.fromkeys(twice))} stands there twice")
    return plain


def look_alikes(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of different names that a reader would take for one.

    Capitals, blanks, hyphens and underscores apart, and what is written wider, or not seen at all.
    """
    seen: dict[str, str] = {}
    pairs = []
    for name in sorted(set(names)):
        plain = "".join(sign for sign in unicodedata.normalize("NFKC", name) if unicodedata.category(sign) != "Cf")
        first = seen.setdefault(re.sub(r"[\s_-]+", "", plain.casefold()), name)
        if first != name:
            pairs.append((first, name))
    return pairs


def look_alike_notes(names: Iterable[str]) -> list[str]:
    """A sentence for each pair of classes that a reader would take for one."""
    return [f"note: the classes {first} and {second} look alike and are taken for two" for first, second in look_alikes(names)]


def shown(names: Iterable[str]) -> str:
    """The first few names of a list, for a sentence."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def check_same_classes(first: Sequence[str], second: Sequence[str], first_is: str, second_is: str) -> None:
    """Raise `UserError`, showing both, where two lists do not name the same classes; their order is no matter."""
    ours, theirs = ({tidy(name) for name in names} for names in (first, second))
    if ours == theirs:
        return
    parts = [
        f"{who} alone has {shown(sorted(own))}" for who, own in ((first_is, ours - theirs), (second_is, theirs - ours)) if own
    ]
    alike = look_alikes(ours ^ theirs)
    hint = f" ({alike[0][0]} and {alike[0][1]} look alike: spell them alike)" if alike else ""
    raise UserError(f"the classes of {first_is} and of {second_is} differ: {'; '.join(parts)}{hint}")


def check_same_order(first: Sequence[str], second: Sequence[str], first_is: str, second_is: str) -> None:
    """Raise `UserError`, showing both, where two lists do not name the same classes in the same order."""
    check_same_classes(first, second, first_is, second_is)
    if [tidy(name) for name in first] != [tidy(name) for name in second]:
        raise UserError(f"{first_is} has the classes in the order {shown(first)}; {second_is} in the order {shown(second)}")


def check_different_classes(splits: Mapping[str, Iterable[str]], source: str) -> None:
    """Raise `UserError` where two splits of a few-shot set share a class; a note on stderr where two look alike."""
    for first, second in itertools.combinations(splits, 2):
        if both := sorted(set(splits[first]) & set(splits[second])):
            raise UserError(
                f"{source}: {first} and {second} both have {shown(both)}: new classes must be new, so that a learner is "
                "never scored on what it was trained on"
            )
    for note in look_alike_notes(name for names in splits.values() for name in names):
        print(note, file=sys.stderr)


def meant(word: str, known: Iterable[str], alike: float = 0.6) -> str:
    """A question to end an error with, where one of the known words is so much (0..1) like `word`; else nothing."""
    close = difflib.get_close_matches(word, list(known), 1, alike)
    return f" (did you mean {close[0]}?)" if close else ""
