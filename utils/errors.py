"""The exceptions that are meant for the person at the keyboard."""


class UserError(Exception):
    """Something the user gave is wrong; the message says what, what was expected, and what to do.

    The command line prints it as one line and exits with 2. Code that is used as a library may catch it.
    """


class Stopped(Exception):
    """The user stopped the work and it stopped in good order; the message says how to go on. Exit status 130."""


def in_words(error: BaseException) -> str:
    """What somebody else's code raised, on one line: its kind and what it says."""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


class BudgetSpent(Exception):
    """A limit that the user set is reached. The work goes on with what it has; this never reaches the command line."""
