"""Loops that copy by tensor descriptors: the same results, and only where a tensor has one.

Also what is launched where Triton compiles the other form wrongly (tuning/compiler.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util

import pytest
import torch
from support.cases import Case, check_budget, skip_unless_supported

from genhoi_kernels.backends.triton import backend

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

from benchmarks.static import shipped
from genhoi_kernels.backends.triton import arguments
from genhoi_kernels.backends.triton.launch import descriptor, has_descriptor
from genhoi_kernels.backends.triton.tuning import compiler, configs
from genhoi_kernels.backends.triton.tuning.candidates import candidates
from genhoi_kernels.backends.triton.tuning.configs import Config

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HALF = torch.bfloat16
PIPELINED = ("forward", "queries", "keys", "reference_keys")
CASES = [
    Case(rows=131, lengths=(40, 9), batch=2, dim=64, gate="token", mask="random"),
    Case(rows=133, dim=96, heads=3, layout="fused", lengths=(5,)),
    Case(rows=3, keys=64, dim=32, heads=1),
    Case(rows=70, keys=130, batch=2, dim=32, layout="expanded"),  # has none
    Case(rows=70, keys=130, dim=20, heads=1),  # has none
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_budget(case: Case) -> None:
    case = dataclasses.replace(case, dtype=HALF)
    skip_unless_supported("triton", case.call("triton"))
    arch = backend.architecture(DEVICE)
    if arch.startswith("sm_8"):
        pytest.skip("tensor descriptors need sm_90")
    with contextlib.ExitStack() as stack:
        for kernel in PIPELINED:
            key = configs.key_of(arch, kernel, 2, case.dim)
            stack.enter_context(configs.trying(key, Config(64, 64, 32, 4, 2, descriptors=True)))
        check_budget(case, "triton")


def test_which_tensors_have_one() -> None:
    x = torch.zeros(2, 5, 3, 32, dtype=HALF)
    assert has_descriptor(x)
    assert has_descriptor(x[:, :, :1, :24])
    assert not has_descriptor(x[:1].expand(2, -1, -1, -1)), "a stride of 0"
    assert not has_descriptor(x[..., 1:]), "starts between multiples of 16 bytes"
    assert not has_descriptor(torch.zeros(2, 5, 3, 20, dtype=HALF)), "strides of 40 bytes"
    assert not has_descriptor(x[:, :0]), "empty"


def test_it_is_by_head() -> None:
    x = torch.zeros(1, 5, 3, 32, dtype=HALF)
    made = descriptor(x, (64, 32))
    assert made.shape == [1, 3, 5, 32]
    assert made.strides[1:] == [32, 96, 1]
    assert made.block_shape == [1, 1, 64, 32]


def test_they_are_used_where_there_are_any() -> None:
    """The budget above would hold without them, too."""
    x = torch.zeros(2, 64, 3, 32, dtype=HALF)
    asked = Config(64, 64, 32, 4, 2, descriptors=True)

    def used(k: torch.Tensor, config: Config) -> bool:
        made = arguments.descriptors(config, config.block_n, K=k, V=x)
        assert (made["K_desc"] is None) == (made["V_desc"] is None)
        return made["K_desc"] is not None

    assert used(x, asked)
    assert not used(x[:1].expand(2, -1, -1, -1), asked)
    assert not used(x, dataclasses.replace(asked, descriptors=False))


def pretend(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """Another Triton at hand, with configurations whose loops copy by pointers."""
    monkeypatch.setattr(compiler, "version", lambda: version)
    monkeypatch.setattr(configs, "config", lambda *_: Config(64, 64, 32, 4, 2, stages_r=2))


@pytest.mark.parametrize("kernel", PIPELINED)
def test_what_is_compiled_wrongly_is_not_launched(
    kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton 3.6 on sm_90: descriptors, or where a tensor has none, no pipeline.

    Nor is there one over references, whose loop has no descriptors.
    """

    def form(version: str, arch: str, dim: int) -> tuple[bool, int, int]:
        pretend(monkeypatch, version)
        extras = kernel == "reference_keys"
        (launch,) = shipped.kernel_variants(kernel, arch, HALF, dim, extras=extras)
        described = [x for x in launch.arguments.values() if hasattr(x, "block_shape")]
        assert len(described) in (0, 2)
        stages_r = launch.constants.get("STAGES_R", launch.config.stages_r)
        return bool(described), launch.config.num_stages, stages_r

    # The launch itself: what it is compiled to is not asked for.
    monkeypatch.setattr(shipped, "_variant", lambda *args, **named: args[4])
    assert form("3.6", "sm_90", 64) == (True, 2, 1)
    assert form("3.6", "sm_90", 20) == (False, 1, 1), "strides of 40 bytes"
    for version, arch in (("3.7", "sm_90"), ("3.10", "sm_90"), ("3.6", "sm_80"), ("3.6", "sm_100")):
        assert form(version, arch, 64) == (False, 2, 2), (version, arch)


def test_float32_is_kept_from_tensor_cores_that_are_given_wrong_addresses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend(monkeypatch, "3.6")
    assert arguments.precision("sm_90", torch.float32) == "ieee"
    assert arguments.precision("sm_90", HALF) == "tf32"
    assert arguments.precision("sm_80", torch.float32) == "tf32x3"
    pretend(monkeypatch, "3.7")
    assert arguments.precision("sm_90", torch.float32) == "tf32x3"


@pytest.mark.parametrize("kernel", configs.KERNELS)
def test_candidates_are_forms_that_are_compiled_right(
    kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, "3.7")
    both = candidates(kernel, "sm_90")
    assert {config.descriptors for config in both} == (
        {True, False} if kernel in PIPELINED else {False}
    )
    pretend(monkeypatch, "3.6")
    safe = candidates(kernel, "sm_90")
    assert safe and all(config.descriptors or config.num_stages == 1 for config in safe)
    assert all(config.stages_r == 1 for config in safe)


def test_entries_are_forms_that_are_compiled_right(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, config in configs.table().items():
        monkeypatch.setattr(compiler, "version", lambda key=key: key.triton)
        assert compiler.allows(config, key.arch), key
