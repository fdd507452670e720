"""Keys copied by tensor descriptors: the same results, and only where a tensor has one."""

from __future__ import annotations

import dataclasses
import importlib.util

import pytest
import torch
from cases import Case, check_budget, skip_unless_supported

from genhoi_kernels.backends import triton as backend

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

from genhoi_kernels.triton_kernels import configs
from genhoi_kernels.triton_kernels.configs import Config
from genhoi_kernels.triton_kernels.launch import descriptor, has_descriptor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HALF = torch.bfloat16
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
    key = configs.key_of(arch, "forward", 2, case.dim)
    with configs.trying(key, Config(64, 64, 32, 4, 2, descriptors=True)):
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
    from genhoi_kernels.call import AttentionTensors
    from genhoi_kernels.triton_kernels.attention import _described

    x = torch.zeros(2, 64, 3, 32, dtype=HALF)
    asked = Config(64, 64, 32, 4, 2, descriptors=True)

    def used(k: torch.Tensor, cut: Config) -> bool:
        return _described(cut, AttentionTensors(x, k, x, *[None] * 5))["K_blocks"] is not None

    assert used(x, asked)
    assert not used(x[:1].expand(2, -1, -1, -1), asked)
    assert not used(x, dataclasses.replace(asked, descriptors=False))
