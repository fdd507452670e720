"""How much a region's colour and contrast move over a clip."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from genhoi.evaluation.colour import lab
from genhoi.evaluation.drift import drift

F, H, W = 12, 24, 32


def still() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    frame = torch.randint(60, 180, (H, W, 3), generator=draw, dtype=torch.uint8)
    mask = torch.zeros(F, H, W, dtype=torch.bool)
    mask[:, 4:20, 6:26] = True
    return frame.repeat(F, 1, 1, 1), mask


def test_a_still_clip_does_not_drift() -> None:
    found = drift(*still(), span=4)
    assert (found.colour, found.contrast) == (pytest.approx(0, abs=1e-9), pytest.approx(1))
    assert found.colours.shape == found.contrasts.shape == (F,)


def test_colour_is_the_distance_of_the_means() -> None:
    frames, mask = still()
    frames[:6], frames[6:] = torch.tensor([90, 40, 30]), torch.tensor([40, 90, 200])
    a, b = lab(torch.stack([frames[0, 5, 10], frames[-1, 5, 10]]))
    found = drift(frames, mask, span=6)
    assert found.colour == pytest.approx(float((a - b).norm()))
    assert found.colour > 60
    assert found.colours.tolist() == pytest.approx([0.0] * 6 + [found.colour] * 6, abs=1e-6)


def test_contrast_is_the_ratio_of_the_spreads() -> None:
    frames, mask = still()
    frames = (frames.double().mean(-1, keepdim=True).expand_as(frames)).to(torch.uint8)
    late = frames[8:].double()
    frames[8:] = ((late - 120) * 0.5 + 120).round().to(torch.uint8)
    found = drift(frames, mask, span=4)
    assert found.contrast == pytest.approx(0.5, abs=0.02)
    assert found.contrasts[:8].tolist() == pytest.approx([1.0] * 8)


def test_only_the_region_counts() -> None:
    frames, mask = still()
    frames[6:][~mask[6:]] = 255
    assert drift(frames, mask, span=4).colour == pytest.approx(0, abs=1e-9)


def test_frames_without_a_region_are_left_out() -> None:
    frames, mask = still()
    mask[0], mask[5] = False, False
    found = drift(frames, mask, span=4)
    assert found.colour == pytest.approx(0, abs=1e-9)
    assert found.colours.isnan().tolist() == [t in (0, 5) for t in range(F)]
    nothing = drift(frames, torch.zeros_like(mask))
    assert math.isnan(nothing.colour) and math.isnan(nothing.contrast)
    assert nothing.as_record() == {
        "colour_delta_e": None,
        "contrast_ratio": None,
        "span_frames": F // 2,
    }


def test_a_large_region_is_sampled_evenly() -> None:
    draw = torch.Generator().manual_seed(1)
    frames = torch.randint(0, 256, (2, 200, 300, 3), generator=draw, dtype=torch.uint8)
    every = torch.ones(2, 200, 300, dtype=torch.bool)
    assert drift(frames, every).colour < 1.5  # two draws of the same noise
    assert drift(frames[:1], every[:1]).colour == 0  # one frame is first and last


def test_refusals() -> None:
    frames, mask = still()
    with pytest.raises(ValueError, match="span: got 0"):
        drift(frames, mask, span=0)
    with pytest.raises(ValueError, match="mask: got"):
        drift(frames, mask[1:])
    with pytest.raises(TypeError, match=r"frames: got torch.float32"):
        drift(frames.float(), mask)
