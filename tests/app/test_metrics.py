"""Metrics by frame and region: exact cases, empty regions, tiny frames, other implementations."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from genhoi.evaluation.frechet import frechet_distance, frechet_of_features
from genhoi.evaluation.metrics import (
    PSNR_CAP,
    region_mean,
    region_psnr,
    squared_error,
    ssim_map,
    thirds,
)
from genhoi.evaluation.object_metrics import colour_similarity, object_pixels, texture_similarity


def noise(*shape: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (*shape, 3), generator=draw, dtype=torch.uint8)


def stripes(height: int, width: int, *, along: int) -> Tensor:
    """Soft stripes, uint8 [height, width, 3]; along 0 they change from row to row."""
    place = torch.arange(height)[:, None] if along == 0 else torch.arange(width)[None]
    wave = (128 + 100 * torch.sin(0.5 * place.double())).expand(height, width)
    return wave.to(torch.uint8)[..., None].expand(-1, -1, 3).contiguous()


# ------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("size", [(1, 1, 1), (3, 5, 7), (2, 48, 33)])
def test_a_uniform_error_has_a_known_psnr(size: tuple[int, int, int]) -> None:
    truth = torch.full((*size, 3), 100, dtype=torch.uint8)
    error = squared_error(truth + 10, truth)
    assert error.dtype == torch.float32 and error.shape == size
    assert torch.equal(error, torch.full(size, 100.0))
    want = torch.full((size[0],), -10 * math.log10(100 / 255**2), dtype=torch.float64)
    torch.testing.assert_close(region_psnr(error), want)
    # No wrapping of uint8, and the sign doesn't matter.
    assert torch.equal(squared_error(truth, truth + 10), error)


def test_regions_are_apart() -> None:
    truth = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    result = truth.clone()
    result[:, :4, :, 0] = 30  # one channel: 300 a pixel
    region = torch.zeros(2, 8, 8, dtype=torch.bool)
    region[:, :4] = True
    error = squared_error(result, truth)
    assert region_mean(error, region).tolist() == [300.0, 300.0]
    assert region_mean(error, ~region).tolist() == [0.0, 0.0]
    assert region_mean(error).tolist() == [150.0, 150.0]
    assert region_psnr(error, ~region).tolist() == [PSNR_CAP, PSNR_CAP]


def test_identical_pixels_are_capped_and_empty_regions_are_nan() -> None:
    frames = noise(3, 9, 9)
    region = torch.zeros(3, 9, 9, dtype=torch.bool)
    region[1, 2, 3] = True
    error = squared_error(frames, frames)
    assert region_psnr(error).tolist() == [PSNR_CAP] * 3
    psnr = region_psnr(error, region)
    assert psnr.isnan().tolist() == [True, False, True]
    assert region_mean(ssim_map(frames, frames), region).isnan().tolist() == [True, False, True]


def test_what_is_outside_a_region_is_not_looked_at() -> None:
    values = torch.tensor([[[1.0, math.nan], [3.0, math.inf]]])
    region = torch.tensor([[[True, False], [True, False]]])
    assert region_mean(values, region).tolist() == [2.0]


@pytest.mark.parametrize("size", [(64, 80), (37, 23), (11, 11), (15, 40)])
def test_ssim_agrees_with_scikit_image_inside(size: tuple[int, int]) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    draw = torch.Generator().manual_seed(1)
    truth = noise(2, *size)
    change = torch.randint(-40, 40, truth.shape, generator=draw)
    result = (truth.int() + change).clamp(0, 255).to(torch.uint8)
    ssim = ssim_map(result, truth)
    for i in range(2):
        _, want = metrics.structural_similarity(
            result[i].numpy(),
            truth[i].numpy(),
            full=True,
            channel_axis=-1,
            data_range=255,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        inside = slice(5, -5), slice(5, -5)
        torch.testing.assert_close(
            ssim[i][inside], torch.from_numpy(want).mean(dim=-1)[inside], atol=1e-6, rtol=0
        )


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (4, 7), (10, 10)])
def test_ssim_of_frames_smaller_than_the_window(size: tuple[int, int]) -> None:
    truth = noise(1, *size)
    same = ssim_map(truth, truth)
    torch.testing.assert_close(same, torch.ones_like(same), atol=1e-9, rtol=0)
    other = ssim_map(truth.flip(-1), truth)
    assert other.isfinite().all() and other.max() <= 1 + 1e-9


def test_ssim_of_uniform_frames_is_the_luminance_term() -> None:
    a, b = torch.full((1, 20, 20, 3), 50, dtype=torch.uint8), torch.full((1, 20, 20, 3), 150)
    c1 = (0.01 * 255) ** 2
    want = (2 * 50 * 150 + c1) / (50**2 + 150**2 + c1)
    ssim = ssim_map(a, b.to(torch.uint8))
    torch.testing.assert_close(ssim, torch.full_like(ssim, want), atol=1e-7, rtol=0)


def test_thirds() -> None:
    assert thirds(torch.arange(9.0)).tolist() == [1.0, 4.0, 7.0]
    assert thirds(torch.tensor([0.0, math.nan, 3.0, math.nan, 5.0, 7.0])).tolist() == [0, 3, 6]
    one = thirds(torch.tensor([2.0]))
    assert one[0] == 2 and one[1:].isnan().all()
    assert [len(part) for part in torch.arange(80).tensor_split(3)] == [27, 27, 26]


# -------------------------------------------------------------------- an object and a picture of it


SIMILARITIES = [colour_similarity, texture_similarity]
Similarity = Callable[..., Tensor]


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_the_picture_itself_is_entirely_similar(similarity: Similarity) -> None:
    picture = noise(24, 31)
    region = torch.zeros(3, 24, 31, dtype=torch.bool)
    region[0], region[2, 5:15, 5:20] = True, True
    similar = similarity(picture.expand(3, -1, -1, -1), region, picture)
    assert similar.dtype == torch.float64 and similar.shape == (3,)
    assert similar[0] == pytest.approx(1, abs=1e-9)
    assert similar[1].isnan() and 0 < similar[2] < 1
    again = similarity(picture.expand(3, -1, -1, -1), region, picture)
    assert torch.equal(similar[[0, 2]], again[[0, 2]])


def test_colours_fall_gradually_as_they_move_apart() -> None:
    def plain(level: int) -> Tensor:
        return torch.full((8, 8, 3), level, dtype=torch.uint8)

    inside = torch.ones(1, 8, 8, dtype=torch.bool)
    # Greys of CIELAB lightness 28.0 and 40.7, in the same 25: half a bin apart.
    half = colour_similarity(plain(66)[None], inside, plain(96), inside[0])
    assert float(half) == pytest.approx(0.5, abs=0.02)
    assert float(colour_similarity(plain(0)[None], inside, plain(255))) == 0
    red, blue = plain(0), plain(0)
    red[..., 0], blue[..., 2] = 200, 200
    assert float(colour_similarity(red[None], inside, blue)) == 0


def test_colours_agree_with_scikit_image() -> None:
    color = pytest.importorskip("skimage.color")
    from genhoi.evaluation.colour import lab

    pixels = noise(200)
    want = torch.from_numpy(color.rgb2lab(pixels.numpy()))
    torch.testing.assert_close(lab(pixels), want, atol=0.01, rtol=0)


def test_texture_knows_orientation_and_smoothness() -> None:
    across, down = stripes(40, 40, along=1), stripes(40, 40, along=0)
    flat = torch.full((40, 40, 3), 90, dtype=torch.uint8)
    frames = torch.stack([across, down, flat])
    region = torch.ones(3, 40, 40, dtype=torch.bool)
    similar = texture_similarity(frames, region, across, region[0])
    assert similar[0] == pytest.approx(1, abs=1e-9)
    assert similar[1] < 0.1 and similar[2] < 0.1
    assert float(texture_similarity(flat[None], region[:1], flat + 20)) == pytest.approx(1)


def test_texture_scales_the_picture_like_the_region() -> None:
    picture = stripes(40, 40, along=1)
    large = picture.repeat_interleave(2, dim=0).repeat_interleave(2, dim=1)
    region = torch.ones(1, 40, 40, dtype=torch.bool)
    assert float(texture_similarity(picture[None], region, large)) > 0.85


def test_the_outline_of_a_region_is_no_texture() -> None:
    frame = torch.zeros(20, 20, 3, dtype=torch.uint8)
    frame[5:15, 5:15] = 90
    region = torch.zeros(1, 20, 20, dtype=torch.bool)
    region[0, 5:15, 5:15] = True
    flat = torch.full((20, 20, 3), 90, dtype=torch.uint8)
    assert float(texture_similarity(frame[None], region, flat)) == pytest.approx(1)
    thin = torch.zeros_like(region)
    thin[0, 3] = True
    assert texture_similarity(frame[None], thin, flat).isnan().all()


def test_pixels_of_the_object() -> None:
    picture = torch.full((10, 10, 3), 128, dtype=torch.uint8)
    picture[2:5, 3:6] = torch.tensor([200, 10, 10], dtype=torch.uint8)
    assert int(object_pixels(picture).sum()) == 9
    assert object_pixels(torch.full((10, 10, 3), 127, dtype=torch.uint8)).all()


# ------------------------------------------------------------------------------ sets of features


def test_frechet_distance_of_gaussians_that_commute() -> None:
    """With diagonal covariances it is |m|^2 + the squared distance of standard deviations."""
    a, b = (torch.tensor(x, dtype=torch.float64) for x in ([1.0, 4.0, 0.0], [9.0, 1.0, 4.0]))
    mean = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    want = float(mean.square().sum() + (a.sqrt() - b.sqrt()).square().sum())
    turn = torch.linalg.qr(
        torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    )[0]
    distance = frechet_distance(
        turn @ mean, turn @ a.diag() @ turn.T, torch.zeros(3).double(), turn @ b.diag() @ turn.T
    )
    assert distance == pytest.approx(want, rel=1e-9)


def test_frechet_distance_of_full_covariances() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    draw = torch.Generator().manual_seed(2)
    roots = torch.randn(2, 5, 5, dtype=torch.float64, generator=draw)
    a, b = (root @ root.T for root in roots)
    zero = torch.zeros(5, dtype=torch.float64)
    middle = linalg.sqrtm((a @ b).numpy()).real.trace()
    want = float(a.trace() + b.trace() - 2 * middle)
    assert frechet_distance(zero, a, zero, b) == pytest.approx(want, rel=1e-6)
    assert frechet_distance(zero, a, zero, a) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_features() -> None:
    features = torch.randn(6, 12, generator=torch.Generator().manual_seed(3))
    assert frechet_of_features(features, features) == pytest.approx(0, abs=1e-6)
    # A shift moves the means only; 6 samples leave 12 dimensions singular.
    assert frechet_of_features(features, features + 2) == pytest.approx(48, rel=1e-5)
    assert frechet_of_features(torch.zeros(2, 1), torch.ones(3, 1)) == pytest.approx(1)


# ------------------------------------------------------------------------------------- refusals


def test_refusals() -> None:
    frames, region = noise(2, 6, 8), torch.ones(2, 6, 8, dtype=torch.bool)
    for call in (squared_error, ssim_map):
        with pytest.raises(TypeError, match=r"result: got torch.float32, want torch.uint8"):
            call(frames.float(), frames)
        with pytest.raises(ValueError, match=r"result: got \(1, 6, 8, 3\), want \(2, 6, 8, 3\)"):
            call(frames[:1], frames)
        with pytest.raises(ValueError, match=r"truth: got \(2, 6, 8\)"):
            call(frames, frames[..., 0])
    with pytest.raises(ValueError, match=r"values: got torch.uint8"):
        region_mean(frames[..., 0])
    with pytest.raises(ValueError, match=r"region: got \(1, 6, 8\), want \(2, 6, 8\)"):
        region_mean(squared_error(frames, frames), region[:1])
    with pytest.raises(TypeError, match=r"region: got torch.uint8, want torch.bool"):
        region_mean(squared_error(frames, frames), region.to(torch.uint8))
    with pytest.raises(ValueError, match=r"curve: got"):
        thirds(torch.zeros(2, 2))
    for similarity in SIMILARITIES:
        with pytest.raises(ValueError, match=r"picture: got \(2, 6, 8, 3\)"):
            similarity(frames, region, frames)
        with pytest.raises(ValueError, match=r"picture_region: got no True"):
            similarity(frames, region, frames[0], ~region[0])
    with pytest.raises(ValueError, match=r"a: got \(1, 4\), want \[at least 2, D\]"):
        frechet_of_features(torch.zeros(1, 4), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"cov_b: got \(2,\), want \(2, 2\)"):
        frechet_distance(torch.zeros(2), torch.eye(2), torch.zeros(2), torch.zeros(2))
