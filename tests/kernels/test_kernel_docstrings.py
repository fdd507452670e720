"""The examples in the public names' docstrings run and print what they say; dir() shows no more."""

from __future__ import annotations

import doctest
import inspect
from typing import Any

import pytest

import genhoi_kernels

NAMES = [name for name in genhoi_kernels.__all__ if name != "__version__"]
# What only describes a call or a result, and what a call raises: examples of others show them.
WITHOUT = {"AttentionCall", "BackendStatus", "EagerFallbackWarning", "LayoutWarning", "RopeCall"}


def examples_of(name: str) -> list[doctest.DocTest]:
    """The docstring's of the object, and of a class's methods."""
    thing: Any = getattr(genhoi_kernels, name)
    return [t for t in doctest.DocTestFinder().find(thing, name, globs={}) if t.examples]


@pytest.mark.parametrize("name", NAMES)
def test_the_examples_run(name: str) -> None:
    runner = doctest.DocTestRunner(verbose=False)
    said: list[str] = []
    for example in examples_of(name):
        runner.run(example, out=said.append)
    assert runner.failures == 0, "".join(said)


@pytest.mark.parametrize("name", sorted(set(NAMES) - WITHOUT))
def test_every_public_name_has_one(name: str) -> None:
    assert examples_of(name)


def test_a_gate_shows_how_it_is_built() -> None:
    assert "MaskGate.build" in {example.name for example in examples_of("MaskGate")}


def test_every_public_name_has_a_docstring_of_its_own() -> None:
    for name in NAMES:
        assert inspect.getdoc(getattr(genhoi_kernels, name)), name


def test_dir_shows_what_is_public() -> None:
    assert dir(genhoi_kernels) == sorted(set(genhoi_kernels.__all__) - {"__version__"})
    assert all(hasattr(genhoi_kernels, name) for name in dir(genhoi_kernels))
