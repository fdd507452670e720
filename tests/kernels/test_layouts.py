"""Tensors in the layout of scaled_dot_product_attention are recognised, in errors alone if sure."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import genhoi_kernels as gk
from genhoi_kernels import notices

N, H, D, M = 12, 3, 8, 6
ROPE = gk.VideoRope((3, 2, 2), head_dim=D)
REF_ROPE = gk.HeadSlidingRope((3, 2, 2), [(2, 3)], head_dim=D, num_heads=H)
FRONT_ROPE = gk.ReferenceFramesRope((3, 2, 2), (0,), head_dim=D, num_heads=H)
QKV, REFS = ("q", "k", "v"), ("k_ref", "v_ref")
TENSORS = (*QKV, *REFS)
LAYOUT = "like [B, H, N, D], scaled_dot_product_attention's layout; the op takes [B, N, H, D]"


def call(*turned: str, references: bool = True, keys: int = N, **options: Any) -> torch.Tensor:
    """A call of which some tensors come as [B, H, N, D]."""
    shapes = {"q": N, "k": keys, "v": keys} | ({"k_ref": M, "v_ref": M} if references else {})
    given = {name: torch.randn(2, tokens, H, D) for name, tokens in shapes.items()}
    out = gk.reference_attention(
        **{n: x.transpose(1, 2).contiguous() if n in turned else x for n, x in given.items()},
        **options,
    )
    assert isinstance(out, torch.Tensor)
    return out


SETS = [names for r in range(1, 6) for names in itertools.combinations(TENSORS, r)]


@pytest.mark.parametrize("turned", SETS, ids="-".join)
def test_any_of_them_among_what_says_more(turned: tuple[str, ...]) -> None:
    """With both rotations nothing is left to guess."""
    with pytest.raises(ValueError) as caught:
        call(*turned, rope=ROPE, ref_rope=REF_ROPE)
    message = str(caught.value)
    named, how = message.split(f" {LAYOUT}: ")
    *most, last = turned
    said = f"{', '.join(most)} and {last} look" if most else f"{last} looks"
    assert named.endswith(f"; {said}"), message
    assert how == ", ".join(f"{name}.transpose(1, 2)" for name in turned)
    assert ": got " in named and "wanted" in named


@pytest.mark.parametrize(
    ("turned", "options"),
    [
        (QKV, {"references": False, "rope": ROPE}),
        (QKV, {"references": False, "rope": FRONT_ROPE}),
        (QKV, {"mask": torch.ones(1, N, dtype=torch.bool)}),
        (QKV, {"mask": gk.MaskGate.build(torch.ones(1, N, dtype=torch.bool))}),
        (QKV, {}),  # the references differ
        (REFS, {}),
        (TENSORS, {"ref_lengths": (2, 4)}),
        (("q",), {"references": False}),
        (("k", "v"), {"references": False}),
        (("v",), {"references": False}),
        (QKV, {"references": False, "keys": 77}),
    ],
)
def test_what_gives_it_away(turned: tuple[str, ...], options: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as caught:
        call(*turned, **options)
    how = ", ".join(f"{name}.transpose(1, 2)" for name in turned)
    assert str(caught.value).endswith(f"{LAYOUT}: {how}")


def test_other_errors_do_not_speak_of_it() -> None:
    for options in (
        {"rope": gk.VideoRope((3, 2, 3), head_dim=D)},
        {"ref_lengths": (2, 2)},
        {"mask": torch.ones(1, N - 1, dtype=torch.bool)},
        {"scale": 0.0},
        {"backend": "gpu"},
    ):
        with pytest.raises(ValueError, match="wanted") as caught:
            call(**options)
        assert "layout" not in str(caught.value)


def test_a_rotation_alone() -> None:
    x, x_ref = torch.randn(1, H, N, D), torch.randn(1, H, M, D)
    for tokens, rope in ((x, ROPE), (x_ref, REF_ROPE)):
        with pytest.raises(
            ValueError, match=r"^rope: got .*; x looks like .*x\.transpose\(1, 2\)$"
        ):
            gk.apply_rope(tokens, rope)
    with pytest.raises(ValueError) as caught:
        gk.apply_rope(x[:, :, 1:], ROPE)
    assert "layout" not in str(caught.value)


def test_a_module() -> None:
    rotation = gk.ReferenceRotation((3, 2, 2), [(2, 3)], head_dim=D, num_heads=H)
    with pytest.raises(ValueError, match=r"^num_heads: got .*; k_ref looks like .*k_ref\.tr"):
        rotation(torch.randn(1, H, M, D))
    module = gk.ReferenceAttention(H, D)
    x = torch.randn(1, H, N, D)
    with pytest.raises(ValueError, match=r"^video_grid: got .*; q, k and v look like"):
        module(x, x, x, video_grid=(3, 2, 2))


@pytest.fixture
def every_warning_anew() -> Iterator[None]:
    """As in a new process."""
    notices.forget()
    yield
    notices.forget()


@pytest.mark.usefixtures("every_warning_anew")
def test_more_heads_than_a_model_has_are_doubted_once() -> None:
    x = torch.randn(3, 1, 2, 300, D)
    with pytest.warns(gk.LayoutWarning, match=r"300 heads of 2 tokens.*q\.transpose") as caught:
        gk.reference_attention(*x)
        gk.reference_attention(*x)
    assert len(caught) == 1 and caught[0].filename == __file__


@pytest.mark.usefixtures("every_warning_anew")
@pytest.mark.parametrize(
    ("tokens", "heads", "options"),
    [
        (1, 256, {}),
        (100, 300, {}),
        (2, 300, {"rope": gk.VideoRope((1, 1, 2), head_dim=D)}),  # which proves the layout
    ],
)
def test_no_doubt_where_it_may_well_be_right(tokens: int, heads: int, options: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gk.reference_attention(*torch.randn(3, 1, tokens, heads, D), **options)
