"""Installing the package: where it cannot compile its extension, and beside torch and numpy alone.

What is missing is said in a sentence. The CUDA library's own build is in test_cuda_build.py.
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
from support.environments import installed_with, link_packages

import genhoi
from build_tools.sources import ISA_FLAGS, isa_of, sources
from genhoi_kernels.backends.native import MIN_TORCH

ROOT = Path(__file__).resolve().parents[2]
REASON_FILE = "genhoi_kernels/_C_missing.txt"
CUDA_REASON_FILE = "genhoi_kernels/_cuda_missing.txt"
OPTIONS = [
    "GENHOI_BUILD_CPU",
    "GENHOI_BUILD_CUDA",
    "CXX",
    "CXXFLAGS",
    "LDFLAGS",
    "CUDACXX",
    "CUDA_HOME",
    "TORCH_CUDA_ARCH_LIST",
    "PYTHONPATH",
]

PIP = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check"]

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
        [str(argument) for argument in command],
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


def copy_tree(copy: Path, *folders: str) -> Path:
    """The files of the build and the named folders, without what earlier builds left in them."""
    copy.mkdir()
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, copy)
    leftovers = shutil.ignore_patterns("*.so", "_*_missing.txt", "__pycache__")
    for name in ("build_tools", *folders):
        shutil.copytree(ROOT / name, copy / name, ignore=leftovers)
    return copy


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the source tree."""
    return copy_tree(tmp_path / "tree", "csrc", "genhoi_kernels", "genhoi")


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


def build_wheel(tree: Path, folder: Path, **environment: str) -> Path:
    """The wheel of the tree, built with what is installed here."""
    options = ["--no-build-isolation", "--no-deps", "--no-index"]
    run_checked(*PIP, "wheel", *options, "-w", folder, ".", cwd=tree, **environment)
    (wheel,) = folder.iterdir()
    return wheel


@pytest.mark.parametrize("case", CASES)
def test_wheel_without_extension(case: str, tree: Path, tmp_path: Path) -> None:
    environment, reason = CASES[case]
    wheel = build_wheel(tree, tmp_path / "wheels", **environment(tmp_path))
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


@pytest.fixture
def bare(tree: Path, tmp_path: Path) -> Path:
    """A new environment with the package's wheel, and nothing besides but torch and numpy."""
    environment = tmp_path / "bare"
    run_checked(sys.executable, "-m", "venv", "--without-pip", environment, cwd=tmp_path)
    offered = tmp_path / "offered"
    link_packages(offered, installed_with("torch", "numpy"))
    python = environment / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run_checked(python, "-c", where, cwd=tmp_path).strip())
    (site / "offered.pth").write_text(f"{offered}\n")
    wheel = build_wheel(tree, tmp_path / "wheels", GENHOI_BUILD_CPU="0")
    options = ["install", "--no-deps", "--no-index"]
    run_checked(*PIP, "--python", python, *options, wheel, cwd=tmp_path)
    return python.parent


BARE_OP = """
import sys
import warnings
import torch
# No kernel was built, which is said once where the op is used.
warnings.filterwarnings("ignore", "reference_attention: no kernel takes this call")
from genhoi_kernels import reference_attention
q, k, v, k_ref, v_ref = torch.randn(5, 1, 6, 2, 16)
mask = torch.tensor([[True, False] * 3])
assert reference_attention(q, k, v, k_ref, v_ref, mask=mask).isfinite().all()

from importlib.util import find_spec
extras = ["PIL", "accelerate", "av", "click", "diffusers", "matplotlib", "rich", "safetensors"]
print("importable:", *(name for name in extras if find_spec(name)))

import genhoi
for name in genhoi.__all__:
    try:
        getattr(genhoi, name)
        print(f"genhoi.{name} works")
    except ImportError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="an environment is laid out in another way")
def test_the_op_alone(bare: Path, tmp_path: Path) -> None:
    """torch and numpy are enough for the op; what needs more says which extra to install."""
    importable, *names = run_checked(bare / "python", "-c", BARE_OP, cwd=tmp_path).splitlines()
    assert importable == "importable:"
    assert "genhoi.__version__ works" in names
    assert "genhoi.token_mask works" in names
    assert "genhoi.from_official needs diffusers (pip install 'genhoi-kernels[wan]')" in names
    sentence = r"genhoi\.\w+ (works|needs \S+ \(pip install 'genhoi-kernels\[\w+\]'\))"
    assert [name for name in names if not re.fullmatch(sentence, name)] == []

    command = run(bare / "genhoi", "edit", cwd=tmp_path)
    assert command.returncode == 1
    needed = "genhoi: the command line needs click (pip install 'genhoi-kernels[video]')\n"
    assert command.stdout == needed


def test_names_of_genhoi() -> None:
    """Each is imported from somewhere when it is asked for, and listed."""
    assert sorted(genhoi._MODULE_OF) == sorted(genhoi.__all__)
    assert dir(genhoi) == sorted(set(genhoi.__all__) - {"__version__"})
    for name in genhoi.__all__:
        assert getattr(genhoi, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        genhoi.nothing  # noqa: B018


def test_oldest_torch() -> None:
    """The compiled part serves every torch that the package may be installed beside."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "torch>={}.{}".format(*MIN_TORCH) in project["dependencies"]


def test_sources_are_linked_from_the_weakest_instruction_set() -> None:
    """The linker keeps the first copy of an inline function, which any CPU must be able to run."""
    paths = sources()
    assert {ROOT / path for path in paths} == set((ROOT / "csrc").rglob("*.cpp"))
    isas = [isa_of(path) for path in paths]
    assert list(dict.fromkeys(isas)) == [None, *ISA_FLAGS]
    assert isas == sorted(isas, key=[None, *ISA_FLAGS].index)


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
        archive.extractall(tmp_path / "unpacked", filter="data")
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {
        path.relative_to(tree).as_posix()
        for pattern in ("csrc/**/*.*", "build_tools/*.py")
        for path in tree.glob(pattern)
    }
    assert {"setup.py", "pyproject.toml", "genhoi_kernels/_version.py"} | sources <= names
    assert REASON_FILE not in names

    (unpacked,) = (tmp_path / "unpacked").iterdir()
    wheel = build_wheel(unpacked, tmp_path / "wheels", GENHOI_BUILD_CPU="0")
    assert wheel.name.endswith("-py3-none-any.whl")
