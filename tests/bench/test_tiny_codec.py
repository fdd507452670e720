"""benchmarks.tiny_model.codec: its passes are diffusers' own, its crops are clips', it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.tiny_model import codec, whole_clip
from benchmarks.tiny_model.codec_loss import codec_loss
from benchmarks.tiny_model.crops import Crops, draw_clips
from genhoi.data.synthetic import SyntheticHOI

SMALL = {"base_dim": 4, "z_dim": 3}


@pytest.fixture(autouse=True)
def uncompiled() -> Any:
    """Compile nothing: that takes longer than these tests."""
    with torch.compiler.set_stance("force_eager"):
        yield


def small(seed: int = 0) -> Any:
    model = codec.new_codec(seed, **SMALL)
    torch.manual_seed(seed)
    for weight in model.parameters():  # norms and biases too
        weight.data += 0.1 * torch.randn_like(weight)
    return model


def clip(frames: int, *, batch: int = 1, size: tuple[int, int] = (16, 24)) -> Tensor:
    return torch.rand(batch, 3, frames, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize(("frames", "batch"), [(1, 2), (5, 1), (13, 1)])
@torch.no_grad()
def test_a_pass_over_the_whole_clip_is_diffusers_own(frames: int, batch: int) -> None:
    model, x = small(), clip(frames, batch=batch)
    wanted = model.encode(x).latent_dist.parameters
    torch.testing.assert_close(whole_clip.encode(model, x), wanted, atol=2e-5, rtol=2e-5)
    latents = wanted[:, :3]
    got = whole_clip.decode(model, latents)
    assert got.shape == x.shape and got.abs().max() > 0
    torch.testing.assert_close(got.clamp(-1, 1), model.decode(latents).sample, atol=2e-5, rtol=2e-5)


@torch.no_grad()
def test_inflated_it_makes_of_a_still_what_it_made_of_the_frame() -> None:
    model, x = small(), clip(1)
    frame = whole_clip.encode(model, x)
    shown = whole_clip.decode(model, frame[:, :3])
    still = x.expand(-1, -1, 9, -1, -1)
    assert not torch.allclose(whole_clip.encode(model, still)[:, :, 2:], frame, atol=1e-3)
    whole_clip.inflate(model)
    latents = whole_clip.encode(model, still)
    torch.testing.assert_close(latents, frame.expand_as(latents), atol=1e-4, rtol=1e-4)
    result = whole_clip.decode(model, latents[:, :3])
    torch.testing.assert_close(result, shown.expand_as(result), atol=1e-4, rtol=1e-4)
    # And motion reaches the latents.
    moved = torch.cat([still[:, :, :5], still[:, :, 5:].roll(4, -1)], 2)
    assert not torch.allclose(whole_clip.encode(model, moved)[:, :, 2], latents[:, :, 2], atol=1e-2)


def test_the_loss_is_lower_for_a_better_codec() -> None:
    model, x = small(), clip(5, size=(32, 32)) * 0.1
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for step in range(25):
        torch.manual_seed(step)
        loss = codec_loss(model, x)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def test_crops_are_parts_of_the_clips() -> None:
    clips = np.random.default_rng(0).integers(0, 255, (2, 7, 20, 24, 3), np.uint8)
    crops = Crops(clips, None)
    batch = crops.batch(np.random.default_rng(3), count=6, frames=5, side=16)
    again = crops.batch(np.random.default_rng(3), count=6, frames=5, side=16)
    assert batch.shape == (6, 3, 5, 16, 16) and torch.equal(batch, again)
    pixels = ((batch + 1) * 127.5).round().byte().permute(0, 2, 3, 4, 1)
    windows = np.lib.stride_tricks.sliding_window_view(clips, (5, 16, 16, 3), (1, 2, 3, 4))
    known = {w.tobytes() for w in windows.reshape(-1, 5, 16, 16, 3)}
    both = [{p.numpy().tobytes(), p.flip(-2).contiguous().numpy().tobytes()} for p in pixels]
    assert all(known & either for either in both) and len(set.union(*both) & known) > 2


def test_photographs_are_panned_over() -> None:
    photo = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(2))
    clips = np.zeros((1, 5, 16, 16, 3), np.uint8)
    crops = Crops(clips, lambda rng: photo)
    batch = crops.batch(np.random.default_rng(0), count=40, frames=5, side=16)
    panned = batch[batch.amax((1, 2, 3, 4)) > -1]
    assert 1 <= len(panned) < 20
    assert (
        panned.min() >= -1
        and panned.max() <= 1
        and bool((panned[:, :, 0] != panned[:, :, 4]).any())
    )


def test_clips_are_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = SyntheticHOI("train", clips=3, frames=5, size=(32, 32))
    path = tmp_path / "clips.npy"
    drawn = draw_clips(data, path, processes=2)
    assert drawn.shape == (3, 5, 32, 32, 3)
    assert np.array_equal(drawn[2], data[2].clip.frames.numpy())
    monkeypatch.setattr("benchmarks.tiny_model.crops.get_context", None)
    assert np.array_equal(draw_clips(data, path, processes=2), drawn)
    other = SyntheticHOI("train", clips=2, frames=5, size=(32, 32))
    with pytest.raises(TypeError):  # these would have to be drawn
        draw_clips(other, path, processes=2)


def test_a_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "CODEC", codec.CODEC | SMALL)
    stages = (
        codec.Stage(0.5, frames=1, count=2, side=16),
        codec.Stage(1, frames=5, count=1, side=16),
    )
    monkeypatch.setattr(codec, "_STAGES", stages)
    clips = np.random.default_rng(0).integers(0, 255, (2, 9, 16, 16, 3), np.uint8)
    clock = iter(np.arange(0, 100, 0.05))  # minutes
    monkeypatch.setattr(codec, "_cpu_minutes", lambda: float(next(clock)))

    def run(minutes: float) -> codec._Run:
        return codec._Run(tmp_path, Crops(clips, None), minutes=minutes, seed=0)

    first = run(4)
    first.train()
    assert first.step > 4 and (tmp_path / "log.csv").read_text().count("\n") > 3
    second = run(8)
    assert second.step == first.step and 0.4 < second.share < 0.6
    for name, weight in second.codec.state_dict().items():
        assert torch.equal(weight, first.codec.state_dict()[name])
    buffers = [s["momentum_buffer"] for s in second.muon.state.values()]
    assert buffers and any(b.abs().max() > 0 for b in buffers)
    # The matrices still are the kernels.
    second.train()
    for kernel, matrix in zip(second.kernels, second.matrices, strict=True):
        assert kernel.data_ptr() == matrix.data_ptr()
    assert second.step > first.step


@torch.no_grad()
def test_statistics_make_latents_normal() -> None:
    model = small()
    clips = np.random.default_rng(0).integers(0, 255, (3, 5, 16, 16, 3), np.uint8)
    mean, std = codec.latent_statistics(model, clips)
    model.register_to_config(latents_mean=mean, latents_std=std)
    again = codec.latent_statistics(model, clips)
    assert np.allclose(again[0], 0, atol=1e-5) and np.allclose(again[1], 1, atol=1e-5)


def test_the_codec_has_the_shapes_of_wan() -> None:
    model = codec.new_codec(0)
    assert sum(p.numel() for p in model.parameters()) * 2 < 6e6
    x = torch.zeros(1, 3, 5, 32, 32)
    with torch.no_grad():
        assert model.encode(x).latent_dist.mode().shape == (1, 16, 2, 4, 4)
