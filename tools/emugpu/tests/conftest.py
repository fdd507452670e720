"""Fixtures of the emulator's own tests."""

import os
from collections.abc import Iterator

import numpy as np
import pytest
from emugpu import ptxemu
from emugpu.build import BUILD
from toolchain import nvcc_ptx

os.environ.setdefault("TRITON_CACHE_DIR", str(BUILD / "triton"))  # before triton is imported


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    """Instead of the project's: the emulator fills its memory with NaN itself."""
    yield


@pytest.fixture(scope="session")
def basic() -> ptxemu.Module:
    """The module of kernels/basic.cu."""
    return ptxemu.Module.from_ptx(nvcc_ptx("basic"))


@pytest.fixture(scope="session")
def mm() -> ptxemu.Module:
    """The module of kernels/mm.cu."""
    return ptxemu.Module.from_ptx(nvcc_ptx("mm"))


@pytest.fixture
def rng() -> np.random.Generator:
    """The same random numbers for every test."""
    return np.random.default_rng(0)
