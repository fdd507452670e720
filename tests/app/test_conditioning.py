"""The condition unit: polarity, paint, the mask's latent form, finished frames; and sampling."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from genhoi.bases.mosaic import MosaicBase
from genhoi.conditioning.condition import (
    GREY,
    build_condition,
    latent_mask,
    paint_grey,
    reference_tokens,
)
from genhoi.conditioning.grid import STRIDES, Strides
from genhoi.conditioning.masks import token_mask
from genhoi.editing.windows import windows
from genhoi.models.sampling import noise, noise_levels

F, H, W = 9, 32, 48


@pytest.fixture(scope="module")
def base() -> MosaicBase:
    return MosaicBase()


def frames(seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (F, H, W, 3), dtype=torch.uint8, generator=draw)


def box() -> Tensor:
    mask = torch.zeros(F, H, W, dtype=torch.bool)
    mask[:, 8:24, 16:32] = True
    return mask


# ------------------------------------------------------------------------------------- latent mask


def test_latent_mask_written_out() -> None:
    """Against loops over the definition, two samples at once."""
    draw = torch.Generator().manual_seed(1)
    mask = torch.rand(2, F, H, W, generator=draw) < 0.5
    latent = latent_mask(mask)
    assert latent.shape == (2, 4, 3, H // 8, W // 8) and latent.dtype == torch.float32
    for b in range(2):
        for t in range(3):
            for c in range(4):
                frame = 0 if t == 0 else 4 * t - 3 + c
                assert torch.equal(latent[b, c, t], mask[b, frame, ::8, ::8].float())


def test_latent_mask_agrees_with_the_gates_rule() -> None:
    mask, grid = box(), (3, H // 16, W // 16)
    from_latent = token_mask(latent_mask(mask), grid)
    assert torch.equal(from_latent, token_mask(mask, grid, kind="pixel"))


def test_samples_do_not_mix() -> None:
    masks = torch.stack([box(), ~box()])
    both = latent_mask(masks)
    assert torch.equal(both[:1], latent_mask(masks[:1]))
    assert torch.equal(both[1:], latent_mask(masks[1:]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_masks_have_to_be_binary(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=r"mask: got torch\.\w+, wanted torch.bool; binarise"):
        latent_mask(box().to(dtype))
    with pytest.raises(TypeError, match=r"mask: got torch\.\w+, wanted torch.bool; binarise"):
        paint_grey(frames(), box().to(dtype))


@pytest.mark.parametrize("shape", [(8, 32, 48), (9, 30, 48), (9, 32, 40), (32, 48)])
def test_masks_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"mask: got shape .* wanted \[B, 1 \+ 4 n, H, W\]"):
        latent_mask(torch.zeros(shape, dtype=torch.bool))


# --------------------------------------------------------------------------------------- condition


def test_paint() -> None:
    clip, mask = frames(), box()
    painted = paint_grey(clip, mask)
    assert (painted[mask] == GREY).all()
    assert torch.equal(painted[~mask], clip[~mask])
    assert torch.equal(clip, frames()), "the clip itself is left alone"
    with pytest.raises(ValueError, match="mask: got shape"):
        paint_grey(clip, mask[:5])


def test_polarity_and_layout(base: MosaicBase) -> None:
    """[mask 4 | masked-video latent 16]; 1 is where to generate, and grey is nearly 0 there."""
    condition = build_condition(frames(), box(), base.encode)
    assert condition.channels.shape == (1, 20, 3, H // 8, W // 8)
    assert torch.equal(condition.channels[:, :4], latent_mask(box()))
    assert condition.channels[0, :4, :, 1:3, 2:4].min() == 1
    assert condition.channels[:, :4].mean() == 4 / 24
    latents = condition.channels[:, 4:]
    assert latents[0, :, :, 1:3, 2:4].abs().max() < 0.01
    assert torch.equal(latents, base.encode(paint_grey(frames(), box())))


@pytest.mark.parametrize("name, index", [("first_frame", 0), ("last_frame", -1)])
def test_finished_frames(base: MosaicBase, name: str, index: int) -> None:
    given = frames(7)[0]
    condition = build_condition(frames(), box(), base.encode, **{name: given})
    assert not condition.mask[index].any() and condition.mask.any(-1).any(-1).sum() == F - 1
    image = condition.first_image if index == 0 else condition.last_image
    assert torch.equal(image, given)
    # The first latent frame is frame 0 alone, the last one four frames.
    wanted = [0, 0, 0, 0] if index == 0 else [1, 1, 1, 0]
    assert condition.channels[0, :4, index, 1, 2].tolist() == wanted


def test_without_a_first_frame_frame_0_is_masked(base: MosaicBase) -> None:
    condition = build_condition(frames(), box(), base.encode)
    assert condition.channels[0, :4, 0, 1, 2].tolist() == [1, 1, 1, 1]
    assert (condition.first_image[box()[0]] == GREY).all()


def test_finished_frames_of_another_kind_are_refused(base: MosaicBase) -> None:
    with pytest.raises(ValueError, match=r"first_frame: got shape \(32, 32, 3\)"):
        build_condition(frames(), box(), base.encode, first_frame=frames()[0, :, :32])
    with pytest.raises(TypeError, match=r"last_frame: got torch.float32, wanted torch.uint8"):
        build_condition(frames(), box(), base.encode, last_frame=frames()[0].float())


def test_each_reference_is_seen_in_its_own_mask() -> None:
    left = torch.zeros(F, H, W, dtype=torch.bool)
    left[:, :16, :32] = True
    right = torch.zeros_like(left)
    right[:, :16, 16:] = True
    bits = reference_tokens([left, right], (3, 2, 3), first_frame_given=True).view(3, 2, 3)
    assert not bits[0].any(), "frame 0 is finished"
    assert bits[1].tolist() == [[1, 3, 2], [0, 0, 0]]
    bits = reference_tokens([left, right], (3, 2, 3), first_frame_given=False).view(3, 2, 3)
    assert bits[0].tolist() == [[1, 3, 2], [0, 0, 0]]


# -------------------------------------------------------------------------------------- tiny codec


def test_the_tiny_codec_projects(base: MosaicBase) -> None:
    latents = base.encode(frames())
    assert latents.shape == (1, 16, 3, H // 8, W // 8) and latents.dtype == torch.float32
    decoded = base.decode(latents)
    assert decoded.shape == (F, H, W, 3) and decoded.dtype == torch.uint8
    assert (base.encode(decoded) - latents).abs().max() < 0.02
    still = torch.full((F, H, W, 3), 77, dtype=torch.uint8)
    still[:, :, 20:] = 200
    assert torch.equal(base.decode(base.encode(still)), still)


# ---------------------------------------------------------------------------------------- sampling


def test_noise_levels() -> None:
    sigmas = noise_levels(50, 5.0)
    assert sigmas.dtype == torch.float32 and sigmas[0] == 1 and sigmas[-1] == 0
    s = torch.linspace(1, 0, 51, dtype=torch.float64)
    torch.testing.assert_close(sigmas.double(), 5 * s / (1 + 4 * s), rtol=0, atol=1e-7)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(sigmas=s[:-1].tolist())
    torch.testing.assert_close(sigmas, scheduler.sigmas, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "frames, window, wanted",
    [
        (81, 81, [(0, 81)]),
        (401, 81, [(i, i + 81) for i in range(0, 400, 80)]),
        (13, 9, [(0, 9), (8, 13)]),
        (5, 81, [(0, 5)]),
    ],
)
def test_windows(frames: int, window: int, wanted: list[tuple[int, int]]) -> None:
    assert windows(frames, window) == wanted


def test_windows_of_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="window: got 8, wanted 1 \\+ 4 n"):
        windows(9, 8)
    with pytest.raises(ValueError, match="frames: got 1, wanted"):
        windows(1, 9)


def test_noise_differs_by_window_and_seed() -> None:
    shape = (1, 2, 3)
    assert torch.equal(noise(shape, 3, 1), noise(shape, 3, 1))
    for other in [(3, 2), (4, 1), (4, 0), (31, 1)]:
        assert not torch.equal(noise(shape, 3, 1), noise(shape, *other))


# -------------------------------------------------------------------------------------- strides


def test_strides() -> None:
    assert STRIDES.grid(81, 480, 832) == (21, 30, 52)
    assert STRIDES.latent_grid(21, 60, 104) == (21, 30, 52)
    assert Strides(space=16).grid(121, 704, 1280) == (31, 22, 40)
    for frames in range(1, 30):
        longest = STRIDES.longest(frames)
        assert longest <= frames < longest + 4 and STRIDES.is_whole(longest)
        assert STRIDES.pixel_frames(STRIDES.latent_frames(longest)) == longest
        assert STRIDES.is_clip(frames) == (frames == longest and frames >= 5)
    assert not STRIDES.is_whole(0) and not STRIDES.is_whole(-3)
    assert [STRIDES.side(x) for x in (3, 16, 31.9, 480)] == [16, 16, 16, 480]
    assert STRIDES.fits(32, 48) and not STRIDES.fits(32, 40)
