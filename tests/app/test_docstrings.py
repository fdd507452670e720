"""The examples in the docstrings of the public names, run in an empty folder."""

from __future__ import annotations

import doctest
import inspect
from pathlib import Path

import pytest
from support.tiny_training import forget_accelerator

import genhoi

# A class' example makes a pipeline, say; those of its methods are not asked for.
NAMES = [name for name in genhoi.__all__ if not name.startswith("_")]


@pytest.mark.parametrize("name", NAMES)
def test_the_example_of(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but builtins is there, so that the example says what it imports."""
    monkeypatch.chdir(tmp_path)
    forget_accelerator()
    found = doctest.DocTestParser().get_doctest(
        inspect.getdoc(getattr(genhoi, name)) or "", {}, name, None, None
    )
    assert found.examples, f"genhoi.{name}: no example"
    report: list[str] = []
    doctest.DocTestRunner(verbose=False).run(found, out=report.append)
    assert not report, "".join(report)
