"""The start of the `genhoi` command, which is also `python -m genhoi.cli`."""

import sys

from genhoi.extras import needed_for


def run() -> None:
    """Run the command, or say in one sentence which package it lacks."""
    try:
        with needed_for("the command line"):
            from genhoi.cli.group import main
    except ImportError as error:
        sys.exit(f"genhoi: {error}")
    main()


if __name__ == "__main__":
    run()
