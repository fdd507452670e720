"""Run a script on the emulated GPU: ``python -m emugpu [--cc 80] [--racecheck] script.py ...``."""

import argparse
import runpy
import sys

import emugpu


def main() -> None:
    """Parse the command line and run the script."""
    parser = argparse.ArgumentParser(prog="python -m emugpu")
    parser.add_argument("--cc", type=int, help="compute capability (default: 80)")
    parser.add_argument("--devices", type=int, help="number of devices (default: 1)")
    parser.add_argument(
        "--racecheck",
        action="store_true",
        help="raise on races and uninitialised reads of shared memory",
    )
    parser.add_argument("script")
    parser.add_argument("args", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    settings = {"racecheck": "raise", "initcheck": "raise"} if given.racecheck else {}
    emugpu.install(given.cc, devices=given.devices, **settings)
    sys.argv = [given.script, *given.args]
    with emugpu.exact_errors():
        runpy.run_path(given.script, run_name="__main__")


main()
