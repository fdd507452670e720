"""Token masks: the released rule exactly, the `any` rule, and clear refusals."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from genhoi.conditioning.masks import clear_first_frame, token_mask

SHARED = Path(os.environ.get("GENHOI_SHARED", Path(__file__).parents[3] / "shared"))
GOLDENS = SHARED / "goldens"
needs_goldens = pytest.mark.skipif(
    not (GOLDENS / "op_token_mask.json").is_file(),
    reason=f"no goldens in {GOLDENS}; GENHOI_SHARED names the folder that holds goldens/",
)


@pytest.mark.shared
@needs_goldens
@pytest.mark.parametrize("case", [str(i) for i in range(7)])
def test_equals_the_released_code_exactly(case: str) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    tensors = safetensors.load_file(GOLDENS / "op_token_mask.safetensors")
    about = json.loads((GOLDENS / "op_token_mask.json").read_text())[case]
    got = token_mask(tensors[f"{case}/mask"], tuple(about["grid"]))
    assert torch.equal(got, tensors[f"{case}/token_mask"].bool())
    assert int(got.sum()) == about["true"]


# ------------------------------------------------------------ slow and obvious, one value at a time


def window(i: int, tokens: int, size: int) -> range:
    """What adaptive pooling gives to token i: from floor(i n / t) to ceil((i + 1) n / t)."""
    return range(i * size // tokens, -((-(i + 1) * size) // tokens))


def pool(mask: Tensor, grid: tuple[int, int, int]) -> list[list[float]]:
    """Values [B, f, H, W] of each token's window, token by token."""
    f, h, w = grid
    return [
        [
            mask[b, t, y, x].item()
            for y in window(i, h, mask.shape[2])
            for x in window(j, w, mask.shape[3])
        ]
        for b in range(len(mask))
        for t in range(f)
        for i in range(h)
        for j in range(w)
    ]


def slow_latent(mask: Tensor, grid: tuple[int, int, int], rule: str) -> Tensor:
    channels = mask.float() if mask.ndim == 5 else mask.float()[:, None]
    if rule == "any":
        inside = [max(values) > 0.5 for values in pool(channels.amax(1), grid)]
    else:
        binary = (channels.sum(1) / channels.shape[1] > 0.5).float()
        inside = [sum(values) > len(values) / 2 for values in pool(binary, grid)]
    return torch.tensor(inside).view(len(mask), -1)


def slow_pixels(mask: Tensor, grid: tuple[int, int, int], rule: str) -> Tensor:
    """From pixels [B, F, H, W], H and W multiples of 16, for either rule."""
    f, h, w = grid
    out = []
    for b in range(len(mask)):
        for t in range(f):
            frames = [0] * 4 if t == 0 else list(range(4 * t - 3, 4 * t + 1))
            for i in range(h):
                for j in range(w):
                    if rule == "any":
                        block = mask[b, frames, 16 * i : 16 * i + 16, 16 * j : 16 * j + 16]
                        out.append(bool(block.any()))
                        continue
                    on = 0
                    for y in (16 * i, 16 * i + 8):
                        for x in (16 * j, 16 * j + 8):
                            on += sum(bool(mask[b, frame, y, x]) for frame in frames) > 2
                    out.append(on > 2)
    return torch.tensor(out).view(len(mask), -1)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    grid=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
    extra=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    channels=st.sampled_from([None, 1, 4]),
    rule=st.sampled_from(["release", "any"]),
)
def test_latent_masks_equal_the_slow_loop(seed, grid, extra, channels, rule) -> None:  # type: ignore[no-untyped-def]
    f, h, w = grid
    sides = (f, h + extra[0], w + extra[1])
    shape = (2, *sides) if channels is None else (2, channels, *sides)
    # Quarters make ties of the channels' mean likely.
    mask = torch.randint(-1, 6, shape, generator=torch.Generator().manual_seed(seed)) / 4
    assert torch.equal(token_mask(mask, grid, rule=rule), slow_latent(mask, grid, rule))


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    grid=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    rule=st.sampled_from(["release", "any"]),
)
def test_pixel_masks_equal_the_slow_loop(seed, grid, rule) -> None:  # type: ignore[no-untyped-def]
    f, h, w = grid
    noise = torch.rand(2, 4 * f - 3, 4 * h, 4 * w, generator=torch.Generator().manual_seed(seed))
    mask = (noise > 0.45).repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert torch.equal(
        token_mask(mask, grid, rule=rule, kind="pixel"), slow_pixels(mask, grid, rule)
    )


# ------------------------------------------------------------------------------------- the any rule


@pytest.mark.parametrize("pixel", [(0, 0, 0), (4, 17, 33), (5, 31, 47), (8, 15, 16)])
def test_any_finds_a_single_pixel_that_the_released_rule_loses(pixel: tuple[int, int, int]) -> None:
    grid = (3, 2, 3)
    mask = torch.zeros(9, 32, 48, dtype=torch.bool)
    mask[pixel] = True
    t, y, x = (pixel[0] + 3) // 4, pixel[1] // 16, pixel[2] // 16
    got = token_mask(mask, grid, rule="any", kind="pixel")
    assert got.nonzero().tolist() == [[0, (t * 2 + y) * 3 + x]]
    assert not token_mask(mask, grid, rule="release", kind="pixel").any()


def test_two_of_four_is_outside() -> None:
    channels = torch.zeros(1, 4, 1, 2, 2)
    channels[:, :2] = 1
    assert not token_mask(channels, (1, 1, 1)).any()
    channels[:, 2] = 1
    assert token_mask(channels, (1, 1, 1)).all()
    channels[..., 0] = 0
    assert not token_mask(channels, (1, 1, 1)).any()


@pytest.mark.parametrize("rule", ["release", "any"])
@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int64, torch.float32, torch.bfloat16]
)
def test_dtypes_agree(rule, dtype) -> None:  # type: ignore[no-untyped-def]
    mask = torch.rand(5, 32, 32, generator=torch.Generator().manual_seed(3)) > 0.4
    grid = (2, 2, 2)
    want = token_mask(mask, grid, rule=rule, kind="pixel")
    assert torch.equal(token_mask(mask.to(dtype), grid, rule=rule, kind="pixel"), want)


def test_a_mask_drawn_at_another_size_keeps_its_place() -> None:
    mask = torch.zeros(5, 100, 150, dtype=torch.bool)
    mask[:, 50:, :75] = True
    for rule in ("release", "any"):
        got = token_mask(mask, (2, 4, 6), rule=rule, kind="pixel").view(2, 4, 6)  # type: ignore[arg-type]
        assert got[:, 2:, :3].all()
        assert int(got.sum()) == 12


# ------------------------------------------------------------------------------------------ frame 0


def test_clearing_the_first_frame() -> None:
    grid = (3, 2, 2)
    tokens = torch.ones(2, 12, dtype=torch.bool)
    cleared = clear_first_frame(tokens, grid)
    assert not cleared[:, :4].any() and cleared[:, 4:].all()
    assert tokens.all(), "the argument itself must stay as it was"
    mask = torch.ones(9, 32, 32, dtype=torch.bool)
    assert torch.equal(token_mask(mask, grid, kind="pixel", clear_first=True), cleared[:1])


# ----------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("mask", "options", "error", "words"),
    [
        (torch.zeros(1, 2, 3, 8, 8), {}, ValueError, r"mask: got shape \(1, 2, 3, 8, 8\)"),
        (torch.zeros(1, 4, 2, 8, 8), {}, ValueError, "grid"),
        (torch.zeros(1, 4, 3, 3, 8), {}, ValueError, "H at least 4"),
        (torch.zeros(8, 64, 64), {"kind": "pixel"}, ValueError, "9, H, W"),
        (torch.zeros(64, 64), {"kind": "pixel"}, ValueError, "mask: got shape"),
        (torch.full((1, 3, 8, 8), 255), {}, ValueError, "0 and 1 only; binarise"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.complex64), {}, TypeError, "complex64"),
        (torch.zeros(1, 3, 8, 8), {"rule": "most"}, ValueError, "rule: got 'most'"),
        (torch.zeros(1, 3, 8, 8), {"kind": "token"}, ValueError, "kind: got 'token'"),
    ],
)
def test_what_does_not_fit_is_refused(mask, options, error, words) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=words):
        token_mask(mask, (3, 4, 4), **options)


def test_bad_grids_are_refused() -> None:
    with pytest.raises(ValueError, match="grid: got"):
        token_mask(torch.zeros(1, 3, 8, 8), (3, 0, 4))
    with pytest.raises(ValueError, match=r"want \[B, 48\]"):
        clear_first_frame(torch.zeros(1, 47, dtype=torch.bool), (3, 4, 4))
