"""Every extra holds what its documented example needs, and is the one that messages name.

An example runs beside torch, numpy and what its extra asks for, taken from this environment. The
larger extras are as good as this environment, in which all other tests run.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from support.environments import installed_with, link_packages
from support.pages import model_layer_block, python_block, write_inputs, write_pipeline

import genhoi
from genhoi.extras import _EXTRAS

ROOT = Path(__file__).resolve().parents[2]
EXTRAS: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))[
    "project"
]["optional-dependencies"]
# Of no extra: their weights are the user's to bring, and the message says what to install.
ON_THEIR_OWN = {"lpips"}


def packages_of(extra: str) -> set[str]:
    """What pip is asked for, extras within extras resolved."""
    packages = set()
    for requirement in EXTRAS[extra]:
        inner = re.fullmatch(r"genhoi-kernels\[(.+)\]", requirement)
        if inner:
            packages |= {p for name in inner[1].split(",") for p in packages_of(name)}
        else:
            packages.add(re.match(r"[\w-]+", requirement)[0])
    return packages


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The files that the examples name, small."""
    write_inputs(tmp_path)
    write_pipeline(tmp_path)
    return tmp_path


def run_with(extra: str, code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python where only torch, numpy and an extra's packages can be imported."""
    offered = folder / ".offered"
    link_packages(offered, installed_with("torch", "numpy", *packages_of(extra)))
    # -S: without this environment's own packages.
    return subprocess.run(
        [sys.executable, "-S", "-W", "ignore", "-c", code],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{offered}{os.pathsep}{ROOT}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
@pytest.mark.parametrize(
    ("extra", "example"),
    [
        ("wan", model_layer_block("docs/model_layer.md")),
        ("video", python_block("README.md", "import GenHOIPipeline")),
    ],
    ids=["wan", "video"],
)
def test_an_extra_is_enough(extra: str, example: str, files: Path) -> None:
    process = run_with(extra, example, files)
    assert process.returncode == 0, process.stdout


def test_extras_are_named_as_they_are_defined() -> None:
    """The sentence for a missing package names an extra that brings it."""
    named: dict[str, set[str]] = {extra: set() for extra in EXTRAS}
    for package, extra in _EXTRAS.values():
        named[extra].add(package)
    for extra in ("wan", "video", "train"):
        defined = {re.match(r"[\w-]+", requirement)[0] for requirement in EXTRAS[extra]}
        assert named[extra] <= defined
        assert defined <= set().union(*named.values(), {"genhoi-kernels"})


def test_every_import_is_of_an_extra() -> None:
    """What genhoi imports is Python's, torch, numpy, or brought by an extra that is named."""
    known = {*sys.stdlib_module_names, *_EXTRAS, "genhoi", "genhoi_kernels", "numpy", "torch"}
    known |= ON_THEIR_OWN
    for path in Path(genhoi.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                assert name.partition(".")[0] in known, f"{path}: {name}"


@pytest.mark.parametrize("page", ["README.md", "docs/model_layer.md"])
def test_examples_import_what_the_extra_has(page: str) -> None:
    """At a glance, without an environment; `test_an_extra_is_enough` runs it."""
    provided = metadata.packages_distributions()
    packages = packages_of("wan") | {"torch", "numpy", "genhoi-kernels"}
    for node in ast.walk(ast.parse(model_layer_block(page))):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
            assert module is not None
            name = module.partition(".")[0]
            assert name == "genhoi" or packages & set(provided[name]), module
