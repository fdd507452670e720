"""Measures rank the truth first, a slightly moved truth next, and what looks wrong low."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.ablation.flat import FlatHOI
from genhoi.evaluation.metrics import region_mean, region_psnr, squared_error, ssim_map
from genhoi.evaluation.object_metrics import colour_similarity, texture_similarity
from genhoi.evaluation.structure import edge_similarity

SIDE = 128


def blurred(frames: Tensor, sigma: float) -> Tensor:
    place = torch.arange(-int(3 * sigma), int(3 * sigma) + 1)
    taps = torch.exp(-0.5 * (place / sigma) ** 2)
    taps = (taps / taps.sum()).expand(3, 1, 1, -1)
    half = int(3 * sigma)
    values = F.pad(frames.permute(0, 3, 1, 2).float(), (half,) * 4, mode="replicate")
    values = F.conv2d(F.conv2d(values, taps, groups=3), taps.transpose(2, 3), groups=3)
    return values.permute(0, 2, 3, 1).round().to(torch.uint8)


def in_blocks(frames: Tensor, side: int) -> Tensor:
    values = F.avg_pool2d(frames.permute(0, 3, 1, 2).float(), side)
    values = values.repeat_interleave(side, 2).repeat_interleave(side, 3)
    return values.permute(0, 2, 3, 1).round().to(torch.uint8)


def brown_weave(like: Tensor) -> Tensor:
    wave = torch.sin(2 * math.pi * torch.arange(SIDE) / 6)
    weave = torch.tensor([120.0, 85.0, 55.0]) + 25 * (wave[:, None] * wave)[..., None]
    return weave.to(torch.uint8).expand_as(like)


@pytest.fixture(scope="module")
def scene() -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """A truth, its mask, its object's picture, and what stands in the mask in its place."""
    pytest.importorskip("skimage")
    clips = FlatHOI("test", clips=2, frames=5, size=(SIDE, SIDE), mask="tight", seed=3)
    sample, other = clips[0], clips[1].clip.frames
    truth, mask = sample.clip.frames, sample.mask
    mean = truth[mask].float().mean(0).round().to(torch.uint8)
    painted = {
        "truth": truth,
        "moved by 1": truth.roll(1, 2),
        "moved by 2": truth.roll(2, 2),
        "lighter": (truth.int() + 10).clamp(max=255).to(torch.uint8),
        "blurred": blurred(truth, 3.0),
        "in blocks": in_blocks(truth, 8),
        "mean colour": mean.expand_as(truth),
        "brown weave": brown_weave(truth),
        "unedited source": other,
    }
    results = {}
    for name, pixels in painted.items():
        results[name] = torch.where(mask[..., None], pixels, truth)
    return truth, mask, sample.object, results


GOOD = ("moved by 1", "moved by 2", "lighter")
BAD = ("blurred", "in blocks", "mean colour", "brown weave", "unedited source")


def test_edges_rank_the_truth_first_and_failures_low(
    scene: tuple[Tensor, Tensor, Tensor, dict[str, Tensor]],
) -> None:
    truth, mask, _, results = scene
    edges = {name: float(edge_similarity(x, truth, mask).mean()) for name, x in results.items()}
    assert edges["truth"] == 1
    assert min(edges[name] for name in GOOD) > 0.7
    assert max(edges[name] for name in BAD) < 0.6
    for name in ("mean colour", "brown weave", "unedited source"):
        assert abs(edges[name]) < 0.25, name


def test_ssim_keeps_the_order(scene: tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]) -> None:
    truth, mask, _, results = scene
    ssim = {n: float(region_mean(ssim_map(x, truth), mask).mean()) for n, x in results.items()}
    assert ssim["truth"] == pytest.approx(1)
    assert min(ssim[name] for name in GOOD) > max(ssim[name] for name in BAD)


def test_colours_are_those_of_the_object_or_not(
    scene: tuple[Tensor, Tensor, Tensor, dict[str, Tensor]],
) -> None:
    _, mask, picture, results = scene
    colour = {n: float(colour_similarity(x, mask, picture).mean()) for n, x in results.items()}
    assert colour["truth"] >= max(colour.values()) - 0.01
    for name in ("mean colour", "brown weave", "unedited source"):
        assert colour[name] < 0.3 * colour["truth"], name


def test_why_psnr_and_texture_are_not_measured_inside_the_mask(
    scene: tuple[Tensor, Tensor, Tensor, dict[str, Tensor]],
) -> None:
    """One colour beats another object; blocks beat the truth."""
    truth, mask, picture, results = scene
    psnr = {n: float(region_psnr(squared_error(x, truth), mask).mean()) for n, x in results.items()}
    assert psnr["brown weave"] > psnr["unedited source"]
    texture = {n: float(texture_similarity(x, mask, picture).mean()) for n, x in results.items()}
    assert texture["in blocks"] > texture["truth"]


def test_edges_of_known_pictures() -> None:
    frames = torch.zeros(2, 20, 30, 3, dtype=torch.uint8)
    frames[:, 5:15, 10:20] = 200
    region = torch.zeros(2, 20, 30, dtype=torch.bool)
    region[0] = True
    same = edge_similarity(frames, frames, region)
    assert same[0] == 1 and same[1].isnan() and same.dtype == torch.float64
    assert edge_similarity(frames, frames).tolist() == [1, 1]
    negative = 200 - frames
    assert float(edge_similarity(negative, frames)[0]) < -0.95
    grey = torch.full_like(frames, 90)
    assert float(edge_similarity(grey, grey + 20)[0]) == 1, "flat is flat, light does not count"
    with pytest.raises(ValueError, match=r"result: got \(1, 20, 30, 3\)"):
        edge_similarity(frames[:1], frames)
    with pytest.raises(TypeError, match=r"region: got torch\.uint8"):
        edge_similarity(frames, frames, region.to(torch.uint8))
