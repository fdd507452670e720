"""The C++ compiler, and what it needs of Python."""

import os
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

from build_tools.outcome import NotBuiltError


def named_by(variable: str) -> list[str]:
    """Give the command in an environment variable, empty if there is none.

    Raises NotBuiltError if there is no such program.
    """
    command = shlex.split(os.environ.get(variable, ""))
    if command and shutil.which(command[0]) is None:
        raise NotBuiltError(f"the compiler named by {variable}, {command[0]}, was not found")
    return command


def find_compiler() -> list[str]:
    """Find the command of the C++ compiler. Raises NotBuiltError if there is none."""
    command = named_by("CXX")
    if command:
        return command
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise NotBuiltError("no C++ compiler was found (looked for c++, g++ and clang++)")


def standard_flag(compiler: list[str]) -> str:
    """Give the flag for the newest C++ standard that the compiler knows.

    Raises NotBuiltError if it knows neither C++20 nor C++17, or does not run.
    """
    for flag in ("-std=c++20", "-std=c++17"):
        command = [*compiler, flag, "-x", "c++", "-fsyntax-only", os.devnull]
        try:
            probe = subprocess.run(command, capture_output=True)
        except OSError:
            continue
        if probe.returncode == 0:
            return flag
    raise NotBuiltError(f"the compiler {shlex.join(compiler)} does not compile C++17")


def python_include() -> str:
    """Find the folder of Python.h. Raises NotBuiltError if it is not installed."""
    include = sysconfig.get_path("include")
    if not (Path(include) / "Python.h").is_file():
        raise NotBuiltError(
            "Python.h was not found (on Debian and Ubuntu: apt-get install python3-dev)"
        )
    return include
