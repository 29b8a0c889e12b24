"""The one exception that is meant for the person at the keyboard."""


class UserError(Exception):
    """Something the user gave is wrong; the message says what, what was expected, and what to do.

    The command line prints it as one line and exits with 2. Code that is used as a library may catch it.
    """
