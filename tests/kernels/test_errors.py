"""Each argument of each public function, wrong in turn: the message names it and says what came."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.cases import Case, backend_params, device_of
from torch import Tensor

import genhoi_kernels
from genhoi_kernels import (
    FlowGate,
    GateWeights,
    HeadSlidingRope,
    MaskGate,
    ReferenceFramesRope,
    VideoRope,
    apply_rope,
    qk_norm_rope,
    reference_attention,
)
from genhoi_kernels.spec import AttentionCall

B, N, H, D = 2, 12, 3, 8
Args = dict[str, Any]
Change = Callable[[Args], Args]


def good() -> Args:
    """A call with every argument, all of them right."""
    tokens = {name: torch.randn(B, N, H, D) for name in "qkv"}
    refs = {name: torch.randn(1, 9, H, D) for name in ("k_ref", "v_ref")}
    return (
        tokens
        | refs
        | {
            "mask": torch.ones(1, N, dtype=torch.uint8),
            "ref_lengths": (6, 3),
            "ref_bias": torch.zeros(2),
            "rope": VideoRope((3, 2, 2), head_dim=D),
            "ref_rope": HeadSlidingRope((3, 2, 2), ((2, 3), (3, 1)), head_dim=D, num_heads=H),
            "gate": FlowGate(D).gate_weights(),
            "gate_reduction": "sequence",
            "return_gate_sum": True,
        }
    )


def put(name: str, value: Any) -> Change:
    """Replace an argument."""
    return lambda args: args | {name: value}


def with_x(name: str, change: Callable[[Tensor], Tensor]) -> Change:
    """Change a tensor argument."""
    return lambda args: args | {name: change(args[name])}


def with_rope(name: str, **options: Any) -> Change:
    """Another rotation of the right kind."""
    if name == "rope":
        rope: Any = VideoRope(**({"grid": (3, 2, 2), "head_dim": D} | options))
    else:
        defaults = {
            "video_grid": (3, 2, 2),
            "ref_grids": ((2, 3), (3, 1)),
            "head_dim": D,
            "num_heads": H,
        }
        rope = HeadSlidingRope(**(defaults | options))
    return put(name, rope)


def front(**options: Any) -> ReferenceFramesRope:
    """A rotation whose first frame turns per head."""
    defaults = {"grid": (3, 2, 2), "sliding": (0,), "head_dim": D, "num_heads": H}
    return ReferenceFramesRope(**(defaults | options))


def without_reference(**kept: Any) -> Change:
    """No k_ref and v_ref, and of what describes them only what is given."""
    names = ("k_ref", "v_ref", "mask", "ref_lengths", "ref_bias", "ref_rope")
    return lambda args: args | dict.fromkeys(names) | kept


def with_weight(name: str, change: Callable[[Tensor], Any]) -> Change:
    """Change one of the gate's weights."""
    return lambda args: (
        args | {"gate": args["gate"]._replace(**{name: change(getattr(args["gate"], name))})}
    )


def every_other(x: Tensor) -> Tensor:
    """The same shape, the last dimension not contiguous."""
    return x.repeat_interleave(2, -1)[..., ::2]


def to_meta(x: Tensor) -> Tensor:
    """On another device, which every machine has."""
    return x.to("meta")


def cases_of_tensor(name: str, wrong_dtype: str) -> list[tuple[str, str, type, Change]]:
    """What can be wrong with each of q, k, v, k_ref, v_ref."""
    cases = [
        (name, "list", TypeError, put(name, [1.0])),
        (
            name,
            f"torch.{wrong_dtype}",
            TypeError,
            with_x(name, lambda x: x.to(getattr(torch, wrong_dtype))),
        ),
        (name, "torch.int64", TypeError, with_x(name, lambda x: x.long())),
        (name, "shape", ValueError, with_x(name, lambda x: x[0])),
        (name, "strides", ValueError, with_x(name, every_other)),
    ]
    if name != "q":  # the first tensor sets the sizes
        wider = B + 1 if name != "v_ref" else 2
        cases += [
            (name, "device meta", ValueError, with_x(name, to_meta)),
            (name, f"({wider}, ", ValueError, with_x(name, lambda x: x[:1].repeat(wider, 1, 1, 1))),
            (name, f", {H - 1}, {D})", ValueError, with_x(name, lambda x: x[:, :, 1:])),
            (name, f", {H}, {D - 2})", ValueError, with_x(name, lambda x: x[..., 2:])),
        ]
    return cases


WRONG: list[tuple[str, str, type, Change]] = [
    *cases_of_tensor("q", "complex64"),
    *(case for name in ("k", "v", "k_ref", "v_ref") for case in cases_of_tensor(name, "bfloat16")),
    ("q", "head dim 0", ValueError, with_x("q", lambda x: x[..., :0])),
    ("v", f"({B}, {N - 1}, {H}, {D})", ValueError, with_x("v", lambda x: x[:, 1:])),
    (
        "k",
        f"{N - 1} keys",
        ValueError,
        lambda args: args | {"k": args["k"][:, 1:], "v": args["v"][:, 1:]},
    ),
    ("v_ref", "(1, 8, ", ValueError, with_x("v_ref", lambda x: x[:, 1:])),
    ("v_ref", "None", ValueError, put("v_ref", None)),
    ("k_ref", "None", ValueError, put("k_ref", None)),
    # What describes a reference that is not there.
    (
        "mask",
        "without k_ref",
        ValueError,
        without_reference(mask=torch.ones(1, N, dtype=torch.bool)),
    ),
    ("ref_lengths", "without k_ref", ValueError, without_reference(ref_lengths=(0,))),
    ("ref_bias", "without k_ref", ValueError, without_reference(ref_bias=torch.zeros(1))),
    (
        "ref_rope",
        "without k_ref",
        ValueError,
        without_reference(ref_rope=HeadSlidingRope((3, 2, 2), ((2, 3),), num_heads=H)),
    ),
    # mask
    ("mask", "list", TypeError, put("mask", [True] * N)),
    ("mask", "torch.float32", TypeError, put("mask", torch.ones(1, N))),
    ("mask", "torch.int16", TypeError, put("mask", torch.ones(1, N, dtype=torch.int16))),
    ("mask", f"({N},)", ValueError, with_x("mask", lambda x: x[0])),
    ("mask", f"(3, {N})", ValueError, with_x("mask", lambda x: x.repeat(3, 1))),
    ("mask", f"(1, {N - 1})", ValueError, with_x("mask", lambda x: x[:, 1:])),
    ("mask", "device meta", ValueError, with_x("mask", to_meta)),
    (
        "mask",
        f"(1, {N + 1})",
        ValueError,
        put("mask", MaskGate.build(torch.ones(1, N + 1, dtype=torch.bool))),
    ),
    (
        "mask",
        "device meta",
        ValueError,
        put("mask", MaskGate.build(torch.ones(1, N, dtype=torch.bool)).to("meta")),
    ),
    (
        "mask",
        "torch.uint8",
        ValueError,
        lambda args: args | {"ref_lengths": (1,) * 9, "ref_bias": None, "ref_rope": None},
    ),
    (
        "mask",
        "torch.int64",
        ValueError,
        lambda args: (
            args
            | {
                "ref_lengths": (1,) * 9 + (0,) * 24,
                "ref_bias": None,
                "ref_rope": None,
                "mask": args["mask"].long(),
            }
        ),
    ),
    # ref_lengths, ref_bias
    ("ref_lengths", "(6, 4), 10 in all", ValueError, put("ref_lengths", (6, 4))),
    ("ref_lengths", "(10, -1)", ValueError, put("ref_lengths", (10, -1))),
    ("ref_lengths", "()", ValueError, put("ref_lengths", ())),
    ("ref_lengths", "(6.5, 2.5)", TypeError, put("ref_lengths", (6.5, 2.5))),
    (
        "ref_lengths",
        "(), 0 in all",
        ValueError,  # no reference at all is not one of no tokens
        lambda args: (
            args
            | {
                "k_ref": args["k_ref"][:, :0],
                "v_ref": args["v_ref"][:, :0],
                "ref_lengths": (),
                "ref_bias": None,
                "ref_rope": None,
                "mask": None,
            }
        ),
    ),
    ("ref_bias", "float", TypeError, put("ref_bias", 0.5)),
    ("ref_bias", "torch.bfloat16", TypeError, with_x("ref_bias", lambda x: x.bfloat16())),
    ("ref_bias", "torch.float64", TypeError, with_x("ref_bias", lambda x: x.double())),
    ("ref_bias", "(3,)", ValueError, put("ref_bias", torch.zeros(3))),
    ("ref_bias", "(1, 2)", ValueError, with_x("ref_bias", lambda x: x[None])),
    ("ref_bias", "device meta", ValueError, with_x("ref_bias", to_meta)),
    # rope, ref_rope
    ("rope", "HeadSlidingRope", TypeError, lambda args: args | {"rope": args["ref_rope"]}),
    ("rope", "tuple", TypeError, put("rope", (3, 2, 2))),
    ("rope", "head_dim 128", ValueError, with_rope("rope", head_dim=128)),
    ("rope", "(3, 2, 1)", ValueError, with_rope("rope", grid=(3, 2, 1))),
    ("rope", "(3, 2, 3), 18 tokens in all", ValueError, with_rope("rope", grid=(3, 2, 3))),
    ("rope", "token_offset 1", ValueError, with_rope("rope", token_offset=1)),
    ("rope", "num_heads 4", ValueError, put("rope", front(num_heads=4))),
    ("rope", "first_head 1", ValueError, put("rope", front(first_head=1))),
    ("rope", "(2, 2, 2), 8 tokens in all", ValueError, put("rope", front(grid=(2, 2, 2)))),
    ("ref_rope", "VideoRope", TypeError, lambda args: args | {"ref_rope": args["rope"]}),
    ("ref_rope", "head_dim 16", ValueError, with_rope("ref_rope", head_dim=16)),
    ("ref_rope", "num_heads 2", ValueError, with_rope("ref_rope", num_heads=2)),
    ("ref_rope", "num_heads 40", ValueError, with_rope("ref_rope", num_heads=40)),
    ("ref_rope", "first_head 1", ValueError, with_rope("ref_rope", first_head=1)),
    ("ref_rope", "((2, 3),)", ValueError, with_rope("ref_rope", ref_grids=((2, 3),))),
    ("ref_rope", "(2, 2, 3)", ValueError, with_rope("ref_rope", video_grid=(2, 2, 3))),
    ("ref_rope", "theta 500.0", ValueError, with_rope("ref_rope", theta=500.0)),
    # gate
    ("gate", "Linear", TypeError, put("gate", torch.nn.Linear(2, 2))),
    ("gate", "Tensor", TypeError, put("gate", torch.ones(D))),
    ("gate.norm_weight", "float", TypeError, with_weight("norm_weight", lambda x: 1.0)),
    ("gate.norm_bias", f"({D - 1},)", ValueError, with_weight("norm_bias", lambda x: x[1:])),
    ("gate.fc1_weight", f"({D}, {D // 2})", ValueError, with_weight("fc1_weight", lambda x: x.mT)),
    ("gate.fc1_bias", "torch.bfloat16", TypeError, with_weight("fc1_bias", lambda x: x.bfloat16())),
    ("gate.fc1_bias", "torch.float64", TypeError, with_weight("fc1_bias", lambda x: x.double())),
    ("gate.fc2_weight", f"({D // 2},)", ValueError, with_weight("fc2_weight", lambda x: x[0])),
    ("gate.fc2_bias", "device meta", ValueError, with_weight("fc2_bias", to_meta)),
    ("gate.norm_weight", f"({2 * D},)", ValueError, put("gate", FlowGate(2 * D))),
    ("gate_reduction", "'mean'", ValueError, put("gate_reduction", "mean")),
    ("return_gate_sum", "True", ValueError, put("gate", None)),
    ("return_gate_sum", "True", ValueError, put("gate_reduction", "token")),
    ("return_gate_sum", "True", ValueError, put("gate_reduction", None)),
    # scale
    ("scale", "0.0", ValueError, put("scale", 0)),
    ("scale", "nan", ValueError, put("scale", math.nan)),
    ("scale", "-inf", ValueError, put("scale", -math.inf)),
    ("scale", "Tensor", TypeError, put("scale", torch.tensor(0.1))),
    ("scale", "str", TypeError, put("scale", "0.1")),
    ("scale", "bool", TypeError, put("scale", True)),
    # backend
    ("backend", "'gpu'", ValueError, put("backend", "gpu")),
]


def check_error(call: Callable[[], object], name: str, came: str, kind: type) -> None:
    """Exactly that type, with the argument first and both what came and what was wanted."""
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is kind
    assert message.startswith(f"{name}: "), message
    assert came in message and "wanted" in message, message


def test_the_good_call_is_good() -> None:
    out, gate_sum = reference_attention(**good())
    assert out.shape == (B, N, H, D) and gate_sum.shape == (B, H)


@pytest.mark.parametrize(
    ("name", "came", "kind", "change"), WRONG, ids=[f"{n}-{c}" for n, c, _, _ in WRONG]
)
def test_reference_attention(name: str, came: str, kind: type, change: Change) -> None:
    check_error(lambda: reference_attention(**change(good())), name, came, kind)


def test_no_argument_is_left_out() -> None:
    """Every parameter of the op is wrong at least once above (return_lse cannot be)."""
    parameters = set(reference_attention.__kwdefaults__ or {}) | {"q", "k", "v", "k_ref", "v_ref"}
    tried = {name.split(".")[0] for name, *_ in WRONG}
    assert parameters - tried == {"return_lse"}
    fields = {name.split(".")[1] for name, *_ in WRONG if name.startswith("gate.")}
    assert fields == set(GateWeights._fields)


def norm_args() -> Args:
    tokens = {name: torch.randn(B, N, H * D) for name in "qk"}
    weights = {f"{name}_weight": torch.ones(H * D) for name in "qk"}
    return tokens | weights | {"rope": VideoRope((3, 2, 2), head_dim=D)}


NORM_WRONG: list[tuple[str, str, type, Change]] = [
    ("q", "list", TypeError, put("q", [1.0])),
    ("q", "torch.int64", TypeError, with_x("q", lambda x: x.long())),
    ("q", f"({B}, {N}, {H}, {D})", ValueError, with_x("q", lambda x: x.unflatten(-1, (H, D)))),
    ("q", "strides", ValueError, with_x("q", every_other)),
    ("k", "NoneType", TypeError, put("k", None)),
    ("k", "torch.float16", TypeError, with_x("k", lambda x: x.half())),
    ("k", f"({B}, {N - 1}, {H * D})", ValueError, with_x("k", lambda x: x[:, 1:])),
    ("k", "device meta", ValueError, with_x("k", to_meta)),
    ("k", "strides", ValueError, with_x("k", every_other)),
    ("q_weight", "NoneType", TypeError, put("q_weight", None)),
    ("q_weight", f"({H * D - 1},)", ValueError, with_x("q_weight", lambda x: x[1:])),
    ("k_weight", "torch.bfloat16", TypeError, with_x("k_weight", lambda x: x.bfloat16())),
    ("k_weight", "device meta", ValueError, with_x("k_weight", to_meta)),
    ("rope", "NoneType", TypeError, put("rope", None)),
    ("rope", "head_dim 128", ValueError, with_rope("rope", head_dim=128)),
    ("rope", "(3, 1, 2)", ValueError, with_rope("rope", grid=(3, 1, 2))),
    ("rope", "9 tokens", ValueError, lambda args: args | {"rope": good()["ref_rope"]}),
    ("rope", "(3, 2, 3), 18 tokens", ValueError, with_rope("rope", grid=(3, 2, 3))),
    ("eps", "nan", ValueError, put("eps", math.nan)),
    ("eps", "-1.0", ValueError, put("eps", -1)),
    ("backend", "'gpu'", ValueError, put("backend", "gpu")),
]


@pytest.mark.parametrize(
    ("name", "came", "kind", "change"), NORM_WRONG, ids=[f"{n}-{c}" for n, c, _, _ in NORM_WRONG]
)
def test_qk_norm_rope(name: str, came: str, kind: type, change: Change) -> None:
    qk_norm_rope(**norm_args())
    check_error(lambda: qk_norm_rope(**change(norm_args())), name, came, kind)


ROPE_WRONG: list[tuple[str, str, type, Change]] = [
    ("x", "int", TypeError, put("x", 3)),
    ("x", "torch.bool", TypeError, with_x("x", lambda x: x > 0)),
    ("x", f"({N}, {H}, {D})", ValueError, with_x("x", lambda x: x[0])),
    ("x", "strides", ValueError, with_x("x", every_other)),
    ("rope", "str", TypeError, put("rope", "paper")),
    ("rope", "head_dim 16", ValueError, with_rope("rope", head_dim=16)),
    ("rope", "(3, 1, 2)", ValueError, with_rope("rope", grid=(3, 1, 2))),
    ("rope", "(3, 2, 3), 18 tokens", ValueError, with_rope("rope", grid=(3, 2, 3))),
    (
        "rope",
        "num_heads 2",
        ValueError,
        put("rope", HeadSlidingRope((3, 2, 2), ((3, 4),), head_dim=D, num_heads=2)),
    ),
    ("rope", "head_dim 64", ValueError, put("rope", front(head_dim=64))),
    ("rope", "(2, 2, 2), 8 tokens in all", ValueError, put("rope", front(grid=(2, 2, 2)))),
    ("rope", "token_offset 1", ValueError, put("rope", front(token_offset=1))),
    ("rope", "num_heads 4", ValueError, put("rope", front(num_heads=4))),
    ("backend", "'gpu'", ValueError, put("backend", "gpu")),
]


@pytest.mark.parametrize(
    ("name", "came", "kind", "change"), ROPE_WRONG, ids=[f"{n}-{c}" for n, c, _, _ in ROPE_WRONG]
)
def test_apply_rope(name: str, came: str, kind: type, change: Change) -> None:
    args = {"x": torch.randn(B, N, H, D), "rope": VideoRope((3, 2, 2), head_dim=D)}
    apply_rope(**args)
    check_error(lambda: apply_rope(**change(args)), name, came, kind)


def test_a_shard_is_said_by_an_offset() -> None:
    """The same rows and heads that are refused as a whole are taken as a shard."""
    x = torch.randn(1, 5, 2, D)
    with pytest.raises(ValueError, match=r"\(3, 2, 2\), 12 tokens in all, wanted N = 5; .*=0"):
        apply_rope(x, VideoRope((3, 2, 2), head_dim=D))
    apply_rope(x, VideoRope((3, 2, 2), head_dim=D, token_offset=0))
    heads = {"head_dim": D, "num_heads": 3}
    with pytest.raises(ValueError, match=r"num_heads 3, wanted H = 2; .*first_head=0"):
        apply_rope(x, HeadSlidingRope((3, 2, 2), [(5, 1)], **heads))
    apply_rope(x, HeadSlidingRope((3, 2, 2), [(5, 1)], **heads, first_head=0))
    with pytest.raises(ValueError, match=r"\(3, 2, 2\), 12 tokens in all, wanted N = 5; .*=0"):
        apply_rope(x, front(num_heads=2))
    with pytest.raises(ValueError, match=r"num_heads 3, wanted H = 2; .*first_head=0"):
        apply_rope(x, front(token_offset=0))
    apply_rope(x, front(token_offset=0, first_head=0))


def test_a_negative_scale_is_taken() -> None:
    q, k, v = torch.randn(3, 1, 5, 2, D)
    torch.testing.assert_close(
        reference_attention(q, k, v, scale=-0.5), reference_attention(-q, k, v, scale=0.5)
    )


def test_a_float_mask_is_told_what_to_be() -> None:
    with pytest.raises(TypeError, match=r"mask: got torch.float16, .*mask > 0\.5.*ref_bias"):
        MaskGate.build(torch.ones(1, N).half())
    with pytest.raises(TypeError, match=r"mask: got torch.int16, [^;]*$"):
        MaskGate.build(torch.ones(1, N).short())
    with pytest.raises(TypeError, match="mask: got list, wanted a tensor"):
        MaskGate.build([[True] * N])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"mask: got device meta, wanted .*values"):
        MaskGate.build(torch.ones(1, N, dtype=torch.bool, device="meta"))


@pytest.mark.parametrize("name", backend_params())
def test_a_refusal_is_an_error_with_its_reason(name: str) -> None:
    """A backend asked for by name takes the call or says why not; it never casts."""
    case = Case(dtype=torch.float64)
    reason = genhoi_kernels.supports(name, case.call(name))
    assert reason is not None
    x = torch.randn(1, 3, 2, 16, dtype=torch.float64, device=device_of(name))
    with pytest.raises(ValueError) as caught:
        reference_attention(x, x, x, backend=name)
    assert str(caught.value).startswith(f"backend: {name!r}") and reason in str(caught.value)


def test_supports_knows_its_names() -> None:
    call: AttentionCall = Case().call("eager")
    assert genhoi_kernels.supports("eager", call) is None
    with pytest.raises(ValueError, match=r"^backend: got 'gpu', wanted one of .*eager"):
        genhoi_kernels.supports("gpu", call)
