"""Fixtures of the emulator's own tests."""

import os

import numpy as np
import pytest
from emugpu import ptxemu
from emugpu.build import BUILD
from toolchain import nvcc_ptx

# Before torch and triton are imported. Threads that spin while they wait make tiny calls take
# seconds when other programs use the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TRITON_CACHE_DIR", str(BUILD / "triton"))


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
