"""CUDA kernels compiled by nvcc: what their table finds wrong; figures of the sm_90a kernels."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks.static import cuda
from benchmarks.static.nvcc import ARCHS, SOURCES, list_jobs
from benchmarks.static.overlap import Exp2, count_exp2, serialised_functions
from benchmarks.static.tools import find_tool
from build_tools.nvcc import find_nvcc
from build_tools.outcome import NotBuiltError
from genhoi_kernels.backends import native

HOPPER_SOURCES = sorted((SOURCES / "sm90" / "instantiations").glob("*.cu"))

# ----------------------------------------------------------------------------------------- overlap

SCORES, SUM = "WARPGROUP.DEPBAR.LE gsb0, 0x1", "WARPGROUP.DEPBAR.LE gsb0, 0x0"
EXP2, OTHERS = "@P1 MUFU.EX2 R4, R4", ["MUFU.RCP R1, R2", "FMUL R1, R2, R3", "DEPBAR.LE SB0, 0x0"]
LOOP = [*OTHERS, EXP2, SCORES, EXP2, *OTHERS, EXP2, SUM, EXP2, EXP2, EXP2]


def test_exp2_between_the_waits() -> None:
    assert count_exp2(LOOP) == Exp2(6, 2)
    for first in range(len(LOOP)):  # the compiler may turn the loop anywhere
        assert count_exp2(LOOP[first:] + LOOP[:first]) == Exp2(6, 2)


@pytest.mark.parametrize("missing", [SCORES, SUM])
def test_without_a_wait_nothing_overlaps(missing: str) -> None:
    assert count_exp2([line for line in LOOP if line != missing]) == Exp2(6, 0)


def test_a_third_is_enough() -> None:
    assert Exp2(90, 30).is_overlapped and not Exp2(90, 29).is_overlapped
    assert not Exp2(0, 0).is_overlapped


def test_serialised_products_are_told_apart() -> None:
    """In ptxas's words; the fence that it injects is no fault."""
    serialised = "Potential Performance Loss: wgmma.mma_async instructions are serialized due to"
    log = f"""
ptxas info    : (C7519) warpgroup.arrive is injected in around line 1527 by compiler to allow use \
of registers in GMMA in function '_Zfine'
ptxas info    : (C7512) {serialised} insufficient register resources for the function '_Zbad'
ptxas info    : (C7510) {serialised} insufficient register resources for the wgmma pipeline in \
the function '_Zbad'
"""
    assert serialised_functions(log) == {"_Zbad": ["C7512", "C7510"]}


# ----------------------------------------------------------------------------------------- command

WELL: dict[str, Any] = {
    "kernel": "attention_fwd",
    "arch": "sm_90a",
    "dtype": "bf16",
    "head_dim": 128,
    "registers": 168,
    "spilled": 0,
    "serialised": "",
    "exp2": 90,
    "exp2_before_wait": 74,
}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, ""),
        ({"spilled": 8}, "attention_fwd sm_90a bf16 D128 spills 8 bytes, wanted none"),
        ({"arch": "sm_80", "spilled": 8}, "attention_fwd sm_80 bf16 D128 spills 8 bytes"),
        ({"arch": "sm_90", "spilled": 8}, ""),
        ({"serialised": "C7512"}, "has serialised products (C7512)"),
        ({"exp2_before_wait": 29}, "waits for P V after 29 of 90 exp2, wanted at least a third"),
    ],
)
def test_the_command_fails_on_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], words: str
) -> None:
    monkeypatch.setattr(cuda, "make_rows", lambda archs, console: [WELL | changed])
    result = CliRunner().invoke(cuda.main, ["--out", str(tmp_path)])
    assert result.exit_code == (1 if words else 0), result.output
    assert words in result.output
    with (tmp_path / cuda.CSV_NAME).open(newline="") as file:
        ours, *flash = csv.DictReader(file)
    assert ours["exp2_before_wait"] == str((WELL | changed)["exp2_before_wait"])
    phases = {row["head_dim"]: row["eff_phase"] for row in flash if " fwd fa3" in row["kernel"]}
    assert phases == {"128": "0.662", "96": "0.593", "64": "0.471"}


def test_each_source_has_its_architectures() -> None:
    """Hopper's own are compiled for sm_90a alone, and nothing else is."""
    jobs = list_jobs(ARCHS)
    assert {arch for source, arch in jobs if "sm90" in source.parts} == {"sm_90a"}
    assert {arch for source, arch in jobs if "sm90" not in source.parts} == {"sm_80", "sm_90"}


# ------------------------------------------------------------------------------------- compilation

# The least, by kernel and head dim. FlashAttention-3 has .662, .593 and .471 forward, and backward
# .672, with the five products of the sweep.
PHASE = {
    ("attention_fwd", 128): 0.66,
    ("attention_fwd", 96): 0.59,
    ("attention_fwd", 64): 0.49,
    ("bwd_dq", 128): 0.74,
    ("bwd_dkdv", 128): 0.74,
    ("bwd_sweep", 128): 0.7,
}
INSTRUCTIONS = {("attention_fwd", 128): 6.5}  # the most, for 32 scores
KERNELS = {"fwd": {"attention_fwd"}, "bwd": {"bwd_dq", "bwd_dkdv"}}  # of a source, by its name


def missing() -> str | None:
    """Say what the compilation lacks here, or None."""
    try:
        find_nvcc()
        find_tool("nvdisasm")
    except (NotBuiltError, FileNotFoundError) as error:
        return str(error)
    return native.missing_reason if native.module is None else None


def test_every_type_and_head_dim_has_a_source() -> None:
    parts = itertools.product(KERNELS, ("bf16", "fp16"), ("64", "96", "128"))
    assert {source.stem for source in HOPPER_SOURCES} >= set(map("_".join, parts))


@pytest.mark.slow
@pytest.mark.nvcc
@pytest.mark.skipif(missing() is not None, reason=str(missing()))
@pytest.mark.parametrize("source", HOPPER_SOURCES, ids=lambda source: source.stem)
def test_a_hopper_kernel_as_compiled(source: Path) -> None:
    """It spills nothing, its products overlap with its softmax, and its loop is lean."""
    rows = list(cuda.rows_of(source, "sm_90a"))
    direction, _, dim = source.stem.split("_")
    held = {kernel for kernel, head_dim in PHASE if direction in kernel and head_dim == int(dim)}
    assert {row["kernel"] for row in rows} >= KERNELS[direction] | held
    for row in rows:
        assert cuda.faults(row) == []
        assert ("exp2" in row) == (row["kernel"] == "attention_fwd")
        about = row["kernel"], row["head_dim"]
        assert row["eff_phase"] >= PHASE.get(about, 0), about
        assert row["softmax_ins_per_elem"] <= INSTRUCTIONS.get(about, float("inf")), about
