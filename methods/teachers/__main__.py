"""`python -m methods.teachers` is `methods.runs.teachers`."""

from methods.runs.teachers import main
from utils import cli

if __name__ == "__main__":
    cli.exit_with_message(main)
