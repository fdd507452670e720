"""Run diffusers' own tests of Wan with GenHOI attached, and compare.

    python tests/run_diffusers_tests.py PATH_OF_A_DIFFUSERS_CHECKOUT

Three runs of the same tests: bare; with an adapter attached, without gates or a reference, which
has to change nothing; with a gate on every token and a reference that every token sees. What passes
bare has to pass attached. With a reference the numbers are others: tests that compare them with
recorded ones are told apart.

The tests are those of the checkout, diffusers is the installed one (`--own-source`: the
checkout's). They need pytest-timeout, and for LoRA the packages peft and parameterized. Without a
connection to the Hub pass `--stand-ins`; without a GPU `--on-cpu` runs what only asks for one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from rich.console import Console
from rich.table import Table

MODES = ("bare", "attached", "reference")
SETS = {
    "models": (
        "tests/models/transformers/test_models_transformer_wan.py",
        "tests/models/transformers/test_models_transformer_wan_vace.py",
        "tests/models/transformers/test_models_transformer_wan_animate.py",
    ),
    "pipelines": ("tests/pipelines/wan",),
    "lora": ("tests/lora/test_lora_layers_wan.py", "tests/lora/test_lora_layers_wanvace.py"),
}
# Ends of names of tests that compare with numbers recorded of the bare model.
RECORDED = ("::test_inference",)

Outcomes = dict[str, str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tests, print what differs; 1 if anything that passes bare is lost."""
    options = _parse(arguments)
    missing = [path for name in options.sets for path in _missing(options.checkout, name)]
    if missing:
        print(f"checkout: {options.checkout} has no {', '.join(missing)}", file=sys.stderr)
        return 2
    found: dict[str, dict[str, Outcomes]] = {}
    lost: dict[str, dict[str, list[str]]] = {}
    for name in options.sets:
        found[name] = _run_set(options, name)
        lost[name] = _lost(found[name])
        if options.out is not None:  # after every set: all of them take long
            options.out.write_text(json.dumps({"outcomes": found, "lost": lost}, indent=1))
    _print(found, lost)
    return int(any(tests for by_mode in lost.values() for tests in by_mode.values()))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path, help="folder of a checkout of diffusers")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="which tests")
    parser.add_argument("--own-source", action="store_true", help="import diffusers from there")
    parser.add_argument("--stand-ins", action="store_true", help="make the Hub's tiny text encoder")
    parser.add_argument("--on-cpu", action="store_true", help="the CPU in an accelerator's place")
    parser.add_argument("--processes", type=int, default=0, help="of pytest-xdist; 0: this one")
    parser.add_argument("--out", type=Path, help="JSON file for every test's outcome")
    parser.add_argument("-k", dest="keyword", default="", help="as pytest's -k")
    return parser.parse_args(arguments)


def _missing(checkout: Path, name: str) -> list[str]:
    return [path for path in SETS[name] if not (checkout / path).exists()]


def _run_set(options: argparse.Namespace, name: str) -> dict[str, Outcomes]:
    outcomes = {}
    for mode in MODES:
        print(f"{name}, {mode}", file=sys.stderr, flush=True)
        outcomes[mode] = _run(options, name, mode)
    return outcomes


def _run(options: argparse.Namespace, name: str, mode: str) -> Outcomes:
    """Run a set of tests in one mode: "passed", "failed" or "skipped" by test."""
    with tempfile.TemporaryDirectory() as folder:
        results, log = Path(folder) / "results.xml", Path(folder) / "log"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=600"]
        command += ["-p", "support.diffusers_plugin", "-n", str(options.processes)]
        # Neither this project's settings nor the checkout's: its tests run with their defaults.
        command += ["-c", os.devnull, "--rootdir", ".", f"--junitxml={results}", *SETS[name]]
        command += ["-k", options.keyword] if options.keyword else []
        with log.open("w") as to:
            code = subprocess.run(
                command,
                cwd=options.checkout,
                env=_environment(options, mode),
                stdout=to,
                stderr=subprocess.STDOUT,
            ).returncode
        if code not in (0, 1) or not results.is_file():
            raise RuntimeError(f"pytest ended with {code}:\n{log.read_text()[-4000:]}")
        return _outcomes(results)


def _environment(options: argparse.Namespace, mode: str) -> dict[str, str]:
    here = Path(__file__).resolve().parent
    paths = [here, here.parent, *([options.checkout / "src"] if options.own_source else [])]
    found = [str(path.resolve()) for path in paths]
    found += [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    environment = {
        **os.environ,
        "GENHOI_ATTACH": mode,
        "PYTHONPATH": os.pathsep.join(found),
        "GENHOI_STAND_INS": "1" if options.stand_ins else "",
        "GENHOI_ON_CPU": "1" if options.on_cpu else "",
    }
    if options.processes:  # the threads of all processes share the cores
        environment.setdefault(
            "OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // options.processes))
        )
    if options.on_cpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    if options.stand_ins:
        environment["HF_HUB_OFFLINE"] = "1"
    return environment


def _outcomes(results: Path) -> Outcomes:
    outcomes = {}
    for test in ElementTree.parse(results).iter("testcase"):
        name = f"{test.get('classname')}::{test.get('name')}"
        kinds = {child.tag for child in test}
        failed = kinds & {"failure", "error"}
        outcomes[name] = "failed" if failed else "skipped" if "skipped" in kinds else "passed"
    return outcomes


def _lost(outcomes: Mapping[str, Outcomes]) -> dict[str, list[str]]:
    """List what passes bare and fails otherwise, but for recorded numbers under a reference."""
    lost = {}
    for mode in MODES[1:]:
        tests = [
            test
            for test, outcome in outcomes["bare"].items()
            if outcome == "passed" and outcomes[mode].get(test) != "passed"
        ]
        lost[mode] = [x for x in tests if mode == "attached" or not _is_recorded(x)]
    return lost


def _is_recorded(test: str) -> bool:
    return test.endswith(RECORDED)


def _print(
    found: Mapping[str, Mapping[str, Outcomes]], lost: Mapping[str, Mapping[str, list[str]]]
) -> None:
    table = Table("tests", "number", *(f"pass {mode}" for mode in MODES))
    for name, outcomes in found.items():
        passes = [str(Counter(outcomes[mode].values())["passed"]) for mode in MODES]
        table.add_row(name, str(len(outcomes["bare"])), *passes)
    console = Console()
    console.print(table)
    for name, by_mode in lost.items():
        for mode, tests in by_mode.items():
            for test in tests:
                console.print(f"{name}: passes bare, not {mode}: {test}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
