"""The command ``python -m genhoi_kernels.tune``."""

from __future__ import annotations

import argparse
import sys

from genhoi_kernels.tune import command


def main() -> int:
    """Read the options and measure; what is wrong with them is said in one sentence."""
    parser = argparse.ArgumentParser(prog="python -m genhoi_kernels.tune", description=command.HELP)
    for option, about in command.OPTIONS.items():
        parser.add_argument(
            f"--{option}",
            action="append" if option in command.REPEATED else "store",
            type=float if option == "case-seconds" else str,
            help=about,
        )
    given = parser.parse_args()
    try:
        command.tune(
            shapes=given.shapes or (),
            dtypes=given.dtype or (),
            device=given.device,
            case_seconds=given.case_seconds or command.CASE_SECONDS,
        )
    except (ValueError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
