"""Building the package where its C++ extension cannot be built: it installs, and says why.

The CUDA library's own build is in test_cuda_build.py.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from genhoi_kernels.backends.native import MIN_TORCH

ROOT = Path(__file__).resolve().parents[2]
REASON_FILE = "genhoi_kernels/_C_missing.txt"
CUDA_REASON_FILE = "genhoi_kernels/_cuda_missing.txt"
OPTIONS = [
    *["GENHOI_BUILD_CPU", "GENHOI_BUILD_CUDA", "CXX", "CXXFLAGS", "LDFLAGS", "PYTHONPATH"],
    *["CUDACXX", "CUDA_HOME", "TORCH_CUDA_ARCH_LIST"],
]

REPORT = """
import genhoi_kernels
print("installed in", genhoi_kernels.__file__)
for backend in genhoi_kernels.backends():
    print(f"{backend.name}|{backend.usable}|{backend.reason}")
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (ROOT / "setup.py").is_file(), reason="not run from the package's source tree"
    ),
]


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name not in OPTIONS}
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=clean | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )


def run_checked(*command: str | Path, cwd: Path, **environment: str) -> str:
    process = run(*command, cwd=cwd, **environment)
    assert process.returncode == 0, process.stdout
    return process.stdout


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the source tree, without what earlier builds left in it."""
    copy = tmp_path / "tree"
    copy.mkdir()
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, copy)
    leftovers = shutil.ignore_patterns("*.so", "_*_missing.txt", "__pycache__")
    for name in ("csrc", "genhoi_kernels", "genhoi"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=leftovers)
    return copy


def without_compiler(folder: Path) -> dict[str, str]:
    """A PATH with nothing on it."""
    (folder / "empty").mkdir()
    return {"PATH": str(folder / "empty")}


CASES: dict[str, tuple[Callable[[Path], dict[str, str]], str]] = {
    "switched off": (lambda folder: {"GENHOI_BUILD_CPU": "0"}, "GENHOI_BUILD_CPU=0 was set"),
    "CXX names nothing": (
        lambda folder: {"CXX": "no-such-compiler"},
        "the compiler named by CXX, no-such-compiler, was not found",
    ),
    "no compiler": (without_compiler, "no C++ compiler was found"),
}


@pytest.mark.parametrize("case", CASES)
def test_wheel_without_extension(case: str, tree: Path, tmp_path: Path) -> None:
    environment, reason = CASES[case]
    wheels = tmp_path / "wheels"
    pip = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check"]
    run_checked(
        *[*pip, "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-w", wheels, "."],
        cwd=tree,
        **environment(tmp_path),
    )

    (wheel,) = wheels.iterdir()
    assert wheel.name.endswith("-py3-none-any.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        sentence = archive.read(REASON_FILE).decode().strip()
        cuda_sentence = archive.read(CUDA_REASON_FILE).decode().strip()
        archive.extractall(site)
    assert not [name for name in names if name.endswith((".so", ".cpp", ".h"))]
    assert re.fullmatch(r"The C\+\+ extension was not built: [^\n]+\.", sentence)
    assert reason in sentence
    assert cuda_sentence == (
        "The CUDA library was not built: "
        "it is called through the C++ extension, which was not built."
    )

    # -S: an editable installation of this package would offer its own extension.
    paths = os.pathsep.join([str(site), *sys.path])
    report = run_checked(sys.executable, "-S", "-c", REPORT, cwd=tmp_path, PYTHONPATH=paths)
    first, *lines = report.splitlines()
    assert first == f"installed in {site / 'genhoi_kernels' / '__init__.py'}"
    statuses = {name: (usable, why) for name, usable, why in (line.split("|") for line in lines)}
    usable, why = statuses["cpu"]
    assert usable == "False"
    assert sentence in why
    assert statuses["eager"][0] == "True"


def test_oldest_torch() -> None:
    """The compiled part serves every torch that the package may be installed beside."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "torch>={}.{}".format(*MIN_TORCH) in project["dependencies"]


def test_required_extension_is_an_error(tree: Path, tmp_path: Path) -> None:
    process = run(
        *[sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"],
        cwd=tree,
        GENHOI_BUILD_CPU="1",
        CXX="no-such-compiler",
    )
    assert process.returncode != 0
    assert "no-such-compiler, was not found" in process.stdout
    assert not (tree / REASON_FILE).exists()


def test_reason_replaces_a_stale_extension(tree: Path) -> None:
    """An extension of other sources must not stay behind when the new one cannot be built."""
    build = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    stale = tree / "genhoi_kernels" / f"_C{suffix}"
    stale.touch()
    run_checked(*build, cwd=tree, GENHOI_BUILD_CPU="0")
    assert not stale.exists()
    assert "GENHOI_BUILD_CPU=0" in (tree / REASON_FILE).read_text()


def test_sdist_can_be_built_from(tree: Path, tmp_path: Path) -> None:
    """The source distribution holds the sources, and nothing that a build made."""
    (tree / REASON_FILE).write_text("left from a build\n")
    run_checked(
        *[sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", tmp_path / "sdist"],
        cwd=tree,
    )
    (sdist,) = (tmp_path / "sdist").iterdir()
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {path.relative_to(tree).as_posix() for path in tree.glob("csrc/**/*.*")}
    assert {"setup.py", "pyproject.toml", "genhoi_kernels/_version.py"} | sources <= names
    assert REASON_FILE not in names
