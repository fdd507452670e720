"""FlowGate, ReferenceRotation and ReferenceAttention."""

from __future__ import annotations

import pytest
import torch

import genhoi_kernels as gk

HEADS, DIM, GRID, REFS = 4, 16, (2, 2, 3), ((2, 2),)


def rows(count: int, batch: int = 2, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, count, HEADS, DIM, generator=generator)


@pytest.mark.parametrize(("init", "value"), [("open", 0.99), ("neutral", 0.5)])
@pytest.mark.parametrize("reduction", ["token", "sequence"])
def test_a_new_gate_is_the_same_everywhere(init: str, value: float, reduction: str) -> None:
    gate = gk.FlowGate(DIM, reduction=reduction, init=init)
    o = rows(5)
    torch.testing.assert_close(gate(o), value * o)


@pytest.mark.parametrize("reduction", ["token", "sequence"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gate_alone_is_the_gate_in_the_op(reduction: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    gate = gk.FlowGate(DIM, reduction=reduction)
    torch.nn.init.normal_(gate.fc2.weight)
    q, k, v = (rows(12, seed=s).to(dtype) for s in range(3))
    bare = gk.reference_attention(q, k, v)
    fused = gk.reference_attention(q, k, v, gate=gate)
    # The op gates before it rounds, the module after.
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(gate(bare), fused, rtol=4 * eps, atol=4 * eps)
    assert not torch.allclose(fused, bare, atol=0.01)


def test_sequence_gate_is_one_number_a_head_and_sample() -> None:
    torch.manual_seed(0)
    gate = gk.FlowGate(DIM, reduction="sequence")
    torch.nn.init.normal_(gate.fc2.weight)
    o = rows(7)
    ratio = gate(o) / o
    torch.testing.assert_close(ratio, ratio[:, :1, :, :1].expand_as(ratio))
    assert ratio[:, 0, :, 0].unique().numel() == 2 * HEADS


def test_state_dicts_are_stable() -> None:
    names = ["norm.weight", "norm.bias", "fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]
    assert list(gk.FlowGate(DIM).state_dict()) == names
    module = gk.ReferenceAttention(HEADS, DIM)
    assert list(module.state_dict()) == [f"gate.{name}" for name in names]
    assert list(gk.ReferenceAttention(HEADS, DIM, gate=None).state_dict()) == []
    rope = gk.ReferenceRotation(GRID, REFS, head_dim=DIM, num_heads=HEADS)
    assert list(rope.state_dict()) == []
    other = gk.ReferenceAttention(HEADS, DIM)
    torch.nn.init.normal_(module.gate.fc2.weight)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.gate.fc2.weight, module.gate.fc2.weight)


@pytest.mark.parametrize("gate", ["token", "sequence", None])
@pytest.mark.parametrize("schedule", ["paper", "release", -1.0])
def test_reference_attention_is_the_op(gate: str | None, schedule: str | float) -> None:
    module = gk.ReferenceAttention(HEADS, DIM, gate=gate, schedule=schedule)
    q, k, v = (rows(12, seed=s) for s in range(3))
    k_ref, v_ref = (rows(4, batch=1, seed=s) for s in (3, 4))
    mask = torch.rand(2, 12, generator=torch.Generator().manual_seed(5)) < 0.5
    ref_rope = gk.HeadSlidingRope(GRID, REFS, head_dim=DIM, num_heads=HEADS, schedule=schedule)
    rope = gk.VideoRope(GRID, head_dim=DIM)
    wanted = gk.reference_attention(
        q, k, v, k_ref, v_ref, mask=mask, rope=rope, ref_rope=ref_rope, gate=module.gate
    )
    got = module(q, k, v, k_ref, v_ref, video_grid=GRID, ref_grids=REFS, mask=mask)
    assert torch.equal(got, wanted)
    sliding = gk.ReferenceRotation(GRID, REFS, head_dim=DIM, num_heads=HEADS, schedule=schedule)
    rotated = gk.reference_attention(
        q, k, v, sliding(k_ref), v_ref, mask=mask, rope=rope, gate=module.gate
    )
    torch.testing.assert_close(rotated, wanted, rtol=1e-5, atol=1e-5)


def test_reference_attention_without_a_reference_is_sdpa() -> None:
    module = gk.ReferenceAttention(HEADS, DIM, gate=None)
    q, k, v = (rows(12, seed=s) for s in range(3))
    rope = gk.VideoRope(GRID, head_dim=DIM)
    heads_first = [gk.apply_rope(q, rope), gk.apply_rope(k, rope), v]
    wanted = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in heads_first)
    )
    torch.testing.assert_close(module(q, k, v, video_grid=GRID), wanted.transpose(1, 2))


def test_every_gate_parameter_learns() -> None:
    module = gk.ReferenceAttention(HEADS, DIM)
    torch.nn.init.normal_(module.gate.fc2.weight)
    q, k, v = (rows(12, seed=s) for s in range(3))
    module(q, k, v, video_grid=GRID).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: gk.FlowGate(DIM, reduction="mean"), "reduction: got 'mean'"),
        (lambda: gk.FlowGate(DIM, init="shut"), "init: got 'shut', wanted one of open, neutral"),
        (lambda: gk.FlowGate(1), "head_dim: got 1"),
        (
            lambda: gk.ReferenceAttention(HEADS, DIM, gate="tok"),
            "^gate: got 'tok', wanted one of token, sequence, None",
        ),
        (lambda: gk.ReferenceAttention(HEADS, DIM, gate_init="shut"), "^gate_init: got 'shut'"),
        (lambda: gk.ReferenceAttention(HEADS, 63), "^head_dim: got 63, wanted an even number"),
        (lambda: gk.ReferenceAttention(0, DIM), "^num_heads: got 0"),
        (lambda: gk.ReferenceAttention(HEADS, DIM, theta=0.0), "^theta: got 0"),
        (lambda: gk.ReferenceAttention(HEADS, DIM, first_head=HEADS), "^first_head: got 4"),
        (
            lambda: gk.ReferenceAttention(HEADS, DIM, schedule="sliding"),
            "^schedule: got 'sliding', wanted 'paper', 'release'",
        ),
        (lambda: gk.FlowGate(DIM)(torch.zeros(1, 2, HEADS, 8)), "gate.norm_weight: got"),
        (lambda: gk.FlowGate(DIM)(torch.zeros(1, 2, DIM)), "o: got shape"),
        (lambda: gk.ReferenceRotation((1, 2), REFS, num_heads=HEADS), "video_grid: got"),
        (lambda: gk.ReferenceRotation(GRID, ((2, 2, 2),), num_heads=HEADS), "ref_grids: got"),
    ],
)
def test_errors_name_the_argument(make: object, words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        make()


def call(*, module: gk.ReferenceAttention | None = None, **changes: object) -> torch.Tensor:
    """A call of the module, right but for the changes."""
    q, k_ref = rows(12), rows(4, batch=1)
    given = {"q": q, "k": q, "v": q, "k_ref": k_ref, "v_ref": k_ref}
    given |= {"video_grid": GRID, "ref_grids": REFS}
    return (module or gk.ReferenceAttention(HEADS, DIM))(**(given | changes))


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"video_grid": (2, 2, 4)}, ValueError, "^video_grid: got .2, 2, 4., 16 tokens .* N = 12"),
        ({"video_grid": (2, 2, 2)}, ValueError, "^video_grid: got .2, 2, 2., 8 tokens .* N = 12"),
        ({"video_grid": (12,)}, ValueError, "^video_grid: got .12,., wanted 3 sizes"),
        ({"video_grid": (2, 2, 3.0)}, TypeError, "^video_grid: got .2, 2, 3.0., wanted 3 integers"),
        ({"video_grid": (2, 0, 3)}, ValueError, "^video_grid: got .2, 0, 3."),
        ({"ref_grids": (2, 2)}, TypeError, r"^ref_grids: got .2, 2., .* \[.2, 2.\]"),
        ({"ref_grids": [(2, 3)]}, ValueError, "^ref_grids: got .*, 6 tokens in all, wanted M = 4"),
        ({"ref_grids": ()}, ValueError, "^ref_grids: got no grid"),
        ({"k_ref": None, "v_ref": None}, ValueError, "^ref_grids: got .* without k_ref"),
        ({"q": None}, TypeError, "^q: got NoneType"),
        ({"k_ref": 3}, TypeError, "^k_ref: got int"),
        (
            {"module": gk.ReferenceAttention(12, DIM)},
            ValueError,
            "^num_heads: got 12, wanted H = 4; .*first_head=0",
        ),
        (
            {
                "module": gk.ReferenceAttention(12, DIM),
                "k_ref": None,
                "v_ref": None,
                "ref_grids": (),
            },
            ValueError,
            "^num_heads: got 12, wanted H = 4",
        ),
        (
            {"module": gk.ReferenceAttention(12, DIM, first_head=9)},
            ValueError,
            "^num_heads: got 12 and first_head 9, wanted num_heads of at least 13",
        ),
        (
            {"module": gk.ReferenceAttention(HEADS, 32)},
            ValueError,
            "^head_dim: got 32, wanted D = 16",
        ),
    ],
)
def test_a_call_names_the_option(changes: dict, kind: type, words: str) -> None:
    assert call().shape == (2, 12, HEADS, DIM)
    with pytest.raises(kind, match=words):
        call(**changes)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_heads": 12}, "^num_heads: got 12, wanted H = 4"),
        ({"head_dim": 32}, "^head_dim: got 32, wanted D = 16"),
        ({"ref_grids": [(3, 2)]}, "^ref_grids: got .*, 6 tokens in all, wanted M = 4"),
    ],
)
def test_a_rotation_names_the_option(options: dict, words: str) -> None:
    right = {"video_grid": GRID, "ref_grids": REFS, "head_dim": DIM, "num_heads": HEADS}
    gk.ReferenceRotation(**right)(rows(4))
    with pytest.raises(ValueError, match=words):
        gk.ReferenceRotation(**(right | options))(rows(4))


def test_a_shard_of_the_heads_is_a_slice_of_the_whole() -> None:
    q, k_ref = rows(12), rows(4, batch=1)
    whole = call(q=q, k=q, v=q, k_ref=k_ref, v_ref=k_ref)
    for heads in (slice(0, 1), slice(1, 4)):
        shard = gk.ReferenceAttention(HEADS, DIM, first_head=heads.start)
        some = {name: q[:, :, heads] for name in "qkv"}
        some |= {name: k_ref[:, :, heads] for name in ("k_ref", "v_ref")}
        assert torch.equal(call(module=shard, **some), whole[:, :, heads])


def test_the_former_name_is_the_same_class() -> None:
    assert gk.HeadSlidingRoPE is gk.ReferenceRotation


def test_modules_print_what_they_are() -> None:
    assert "reduction='token'" in repr(gk.FlowGate(DIM))
    assert "schedule='paper'" in repr(gk.ReferenceAttention(HEADS, DIM))
    assert "video_grid=(2, 2, 3)" in repr(gk.ReferenceRotation(GRID, REFS, num_heads=HEADS))
