"""python -m emugpu [--cc 80] [--devices N] [--racecheck] script.py args...: run a script on the emulated GPU."""

import argparse
import runpy
import sys

import emugpu

p = argparse.ArgumentParser(prog="python -m emugpu")
p.add_argument("--cc", type=int)
p.add_argument("--devices", type=int)
p.add_argument(
    "--racecheck",
    action="store_true",
    help="raise on races and uninitialised reads of shared memory",
)
p.add_argument("script")
p.add_argument("args", nargs=argparse.REMAINDER)
a = p.parse_args()
emugpu.install(
    a.cc, devices=a.devices, **(dict(racecheck="raise", initcheck="raise") if a.racecheck else {})
)
sys.argv = [a.script, *a.args]
with emugpu.exact_errors():
    runpy.run_path(a.script, run_name="__main__")
