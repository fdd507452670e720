"""Every instruction set of the CPU backend: those this CPU runs, and arm64 under emulation."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from support.cases import FEW, assert_within_budget
from torch import Tensor

import genhoi_kernels as gk
from genhoi_kernels.backends import cpu, native
from genhoi_kernels.flow_gate import gate_shapes

ROOT = Path(__file__).parents[2]
INFO = gk.build_info()
ISAS = INFO.get("usable_isas", [])
COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
ARM_COMPILER = shutil.which("aarch64-linux-gnu-g++")
ARM_EMULATOR = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")

pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(not INFO["native"], reason=INFO["reason"]),
]


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


@pytest.mark.slow
@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa != INFO["isa"]])
def test_the_other_instruction_sets_pass_the_same_tests(isa: str) -> None:
    """The budget and exactness tests again, with an instruction set that is not the default."""
    quiet = ["-q", "-x", "-p", "no:cacheprovider", "--no-header"]
    chosen = ["-m", "not slow and not gpu", "-k", "cpu"]
    files = ["tests/kernels/test_attention.py", "tests/kernels/test_norm_rope.py"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *quiet, *chosen, *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "GENHOI_CPU_ISA": isa},
    )
    assert result.returncode == 0, result.stdout[-4000:]


@pytest.mark.parametrize("isa", ISAS)
def test_the_environment_chooses(isa: str) -> None:
    result = run_python(
        "import genhoi_kernels as gk; print(gk.build_info()['isa'])", GENHOI_CPU_ISA=isa
    )
    assert result.stdout.strip() == isa


def test_an_unknown_name_disables_the_backend_in_words() -> None:
    result = run_python(
        "import genhoi_kernels as gk; print({b.name: b.reason for b in gk.backends()}['cpu'])",
        GENHOI_CPU_ISA="mmx",
    )
    assert "GENHOI_CPU_ISA: got mmx, wanted one of" in result.stdout


def test_a_named_instruction_set_that_the_cpu_lacks_is_refused() -> None:
    missing = [isa for isa in INFO["compiled_isas"] if isa not in ISAS]
    if not missing:
        pytest.skip("this CPU runs every instruction set of this build")
    result = run_python(
        "import genhoi_kernels as gk; print({b.name: b.reason for b in gk.backends()}['cpu'])",
        GENHOI_CPU_ISA=missing[0],
    )
    assert f"this CPU does not run {missing[0]}" in result.stdout


def test_the_peak_of_the_arithmetic_units() -> None:
    """No call of the op can be faster; a scalar loop of multiply-adds would be slower than this."""
    peaks = {d: native.module.peak_flops(d) for d in ("float32", "bfloat16", "float16")}
    assert all(peak > 1e9 for peak in peaks.values())
    q = torch.randn(1, 512, 2, 64)
    start = time.perf_counter()
    gk.reference_attention(q, q, q, backend="cpu")
    assert 4 * 512 * 512 * 2 * 64 / (time.perf_counter() - start) < peaks["float32"]
    with pytest.raises(ValueError, match="dtype: got float64, wanted float32"):
        native.module.peak_flops("float64")


def one_case(dim: int = 24) -> dict[str, object]:
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    grid, refs, batch, heads = (5, 6, 7), ((3, 5),), 2, 3
    rows, tokens = 210, 15
    return {
        "sizes": (batch, rows, tokens, heads, dim),
        "tensors": [
            *(randn(batch, rows, heads, dim) for _ in range(3)),
            *(randn(1, tokens, heads, dim) for _ in range(2)),
        ],
        "grad": randn(batch, rows, heads, dim),
        "mask": torch.rand(batch, rows, generator=generator) < 0.3,
        "bias": randn(1),
        "gate": [randn(*shape) * 0.3 for shape in gate_shapes(dim).values()],
        "rope": gk.VideoRope(grid, head_dim=dim),
        "ref_rope": gk.HeadSlidingRope(grid, refs, head_dim=dim, num_heads=heads),
    }


def case_input(case: dict) -> bytes:
    """The case as portable_main.cpp reads it."""
    tensors = [*case["tensors"], case["grad"], gk.MaskGate.build(case["mask"]).bits, case["bias"]]
    parts = [struct.pack("5q", *case["sizes"])]
    parts += [x.numpy().tobytes() for x in [*tensors, *case["gate"]]]
    for rope, tokens in ((case["rope"], case["sizes"][1]), (case["ref_rope"], case["sizes"][2])):
        *tables, index = cpu._rotation(rope, tokens)
        for table in tables:
            parts += [struct.pack("2q", *table.shape[:2]), table.numpy().tobytes()]
        parts.append(index.numpy().tobytes())
    return b"".join(parts)


def computed(case: dict, backend: str, dtype: torch.dtype) -> list[Tensor]:
    """out, lse and all gradients, in the order in which portable_main.cpp writes them."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    leaves = [x.to(dtype).requires_grad_() for x in case["tensors"]]
    leaves += [x.to(wide, copy=True).requires_grad_() for x in (case["bias"], *case["gate"])]
    out, lse = gk.reference_attention(
        *leaves[:5],
        mask=case["mask"],
        ref_bias=leaves[5],
        rope=case["rope"],
        ref_rope=case["ref_rope"],
        gate=gk.GateWeights(*leaves[6:]),
        scale=0.25,
        return_lse=True,
        backend=backend,
    )
    grads = torch.autograd.grad(out, leaves, case["grad"].to(dtype))
    return [out.detach(), lse.detach(), *grads]


def run_program(
    case: dict, compiler: str, flags: list[str], emulator: list[str], folder: Path
) -> Tensor:
    """Compile portable_main.cpp and run it on a case: all that it writes, float32."""
    program = folder / "portable"
    source = ROOT / "tests/kernels/native/portable_main.cpp"
    flags = ["-std=c++20", "-O2", "-Wall", "-Wextra", "-Wno-psabi", "-Werror", *flags]
    include = f"-I{ROOT / 'csrc'}"
    subprocess.run([compiler, *flags, include, str(source), "-o", str(program)], check=True)
    result = subprocess.run(
        [*emulator, str(program)], input=case_input(case), capture_output=True, check=True
    )
    return torch.from_numpy(np.frombuffer(result.stdout, dtype=np.float32).copy())


def check_program(compiler: str, flags: list[str], emulator: list[str], folder: Path) -> None:
    """All that the program computes is what the cpu backend computes here."""
    case = one_case()
    got = run_program(case, compiler, flags, emulator, folder)
    for wanted in computed(case, "cpu", torch.float32):
        part, got = got[: wanted.numel()], got[wanted.numel() :]
        # Sums in another order: a few float32 roundings apart.
        torch.testing.assert_close(part.view_as(wanted), wanted, rtol=1e-5, atol=2e-5)
    check_halves(got.view(65536, 4))


@pytest.mark.skipif(
    not (ARM_COMPILER and ARM_EMULATOR),
    reason="needs aarch64-linux-gnu-g++ and qemu-aarch64 (apt: g++-aarch64-linux-gnu qemu-user)",
)
def test_the_portable_kernels_on_arm64(tmp_path: Path) -> None:
    """Compiled for arm64 and executed under emulation."""
    width = ["-DGENHOI_VECTOR_FLOATS=4", "-DGENHOI_TILE_ROWS=4"]
    check_program(str(ARM_COMPILER), ["-static", *width], [str(ARM_EMULATOR)], tmp_path)


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
@pytest.mark.parametrize(("floats", "rows"), [(4, 4), (8, 6), (16, 12)])
def test_every_vector_width_on_this_cpu(floats: int, rows: int, tmp_path: Path) -> None:
    """The code of each instruction set in this CPU's baseline, which executes AVX-512's too."""
    width = [f"-DGENHOI_VECTOR_FLOATS={floats}", f"-DGENHOI_TILE_ROWS={rows}"]
    check_program(str(COMPILER), width, [], tmp_path)


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
@pytest.mark.parametrize(
    ("unit", "floats", "rows"), [("PAIRS", 4, 4), ("PAIRS", 16, 12), ("TILES", 16, 12)]
)
def test_products_in_bfloat16(unit: str, floats: int, rows: int, tmp_path: Path) -> None:
    """The code for AVX512-BF16 and AMX with their instructions in software, on any CPU."""
    flags = [
        f"-DGENHOI_VECTOR_FLOATS={floats}",
        f"-DGENHOI_TILE_ROWS={rows}",
        f"-DGENHOI_BFLOAT16=GENHOI_BFLOAT16_{unit}",
    ]
    case = one_case(dim=64)
    got = run_program(case, str(COMPILER), flags, [], tmp_path)
    case["tensors"] = [x.bfloat16().double() for x in case["tensors"]]
    case["grad"] = case["grad"].bfloat16().double()
    eager, exact = (computed(case, "eager", x) for x in (torch.bfloat16, torch.float64))
    names = "out lse dq dk dv dk_ref dv_ref dbias dgate.0 dgate.1 dgate.2 dgate.3 dgate.4 dgate.5"
    for name, e, t in zip(names.split(), eager, exact, strict=True):
        x, got = got[: t.numel()].view_as(t).double(), got[t.numel() :]
        if t.numel() >= FEW:
            assert_within_budget(x, e.double(), t, torch.bfloat16, name=name)
        else:  # too few values for eager's error to mean anything
            torch.testing.assert_close(x, t, rtol=0.05, atol=0.05 * float(t.abs().max()))


def check_halves(got: Tensor) -> None:
    """Conversions of every 16-bit pattern, against torch's."""
    bits = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    half, bfloat = bits.view(torch.float16).float(), bits.view(torch.bfloat16).float()

    def as_bits(x: Tensor) -> Tensor:
        return x.view(torch.int16).int() & 0xFFFF

    torch.testing.assert_close(got[:, 0], half, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(got[:, 1], bfloat, rtol=0, atol=0, equal_nan=True)
    number = ~bfloat.isnan()
    assert torch.equal(got[number, 2].int(), as_bits(bfloat.half())[number])
    number = ~half.isnan()
    assert torch.equal(got[number, 3].int(), as_bits(half.bfloat16())[number])
