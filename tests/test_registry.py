"""Choosing a backend, and saying why."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import genhoi_kernels as gk
from genhoi_kernels import native, registry

USABLE = [status.name for status in gk.backends() if status.usable]


def attention_call(**changes: object) -> gk.AttentionCall:
    fields = dict(
        device=torch.device("cpu"), dtype=torch.float32, head_dim=16, ref_lengths=(), rope=None,
        ref_rope=None, gate_mode="none", scale=0.25, needs_grad=False,
    )  # fmt: skip
    return gk.AttentionCall(**(fields | changes))


def test_every_status_has_a_sentence() -> None:
    for status in gk.backends():
        assert len(status.reason) > 10
    assert "eager" in USABLE


@pytest.mark.native
@pytest.mark.skipif(not native.module, reason=native.missing_reason)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dtype": torch.float64}, "not torch.float64"),
        ({"device": torch.device("meta")}, "not on meta"),
        ({"head_dim": 12}, "head dim 12"),
        ({"head_dim": 264}, "head dim 264"),
    ],
)
def test_cpu_refuses_in_words(change: dict, words: str) -> None:
    call = attention_call(**change)
    assert words in (gk.supports("cpu", call) or "")
    with pytest.raises(ValueError, match=f"backend: 'cpu' cannot take this call: .*{words}"):
        registry.pick(call, "cpu")
    assert registry.pick(call, None) is registry.pick(call, "eager")


@pytest.mark.native
@pytest.mark.skipif(not native.module, reason=native.missing_reason)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cpu_takes_all_it_promises(dtype: torch.dtype) -> None:
    """Other tests skip what a backend refuses: it must not refuse more than it says."""
    for head_dim in range(8, 257, 8):
        assert gk.supports("cpu", attention_call(dtype=dtype, head_dim=head_dim)) is None
        rope_call = gk.RopeCall(torch.device("cpu"), dtype, head_dim)
        assert gk.supports("cpu", rope_call) is None


@pytest.mark.native
@pytest.mark.skipif(not native.module, reason=native.missing_reason)
def test_cpu_comes_first() -> None:
    assert registry.pick(attention_call(), None) is registry.pick(attention_call(), "cpu")


def test_explain_takes_the_arguments_of_the_op() -> None:
    q = torch.zeros(1, 4, 2, 12)
    answers = gk.explain(q, q, q)
    assert list(answers) == [status.name for status in gk.backends()]
    assert answers["eager"] is None
    assert answers["cpu"] is not None
    with pytest.raises(ValueError, match="k: got shape"):
        gk.explain(q, q[..., :1, :], q)


def test_an_unknown_backend_lists_the_known() -> None:
    q = torch.zeros(1, 4, 2, 16)
    with pytest.raises(ValueError, match=r"backend: got 'cuda9', wanted one of cpu, eager"):
        gk.reference_attention(q, q, q, backend="cuda9")


def test_importing_the_ops_needs_nothing_but_torch() -> None:
    """Whoever imports the ops into a model does not pay for video, figures or a command line."""
    code = (
        "import sys, genhoi_kernels; "
        "print([m for m in ('av', 'matplotlib', 'click', 'rich', 'PIL') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
