"""`python -m utils.report` is `methods.runs.page`, the page of all runs."""

from methods.runs.page import main
from utils import cli

if __name__ == "__main__":
    cli.exit_with_message(main)
