"""GenHOI as a pipeline of diffusers' kind: its condition, its loop, and what it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanTransformer3DModel,
)
from PIL import Image
from support.tiny_base import save_tiny_base
from support.tiny_wan import lively_adapter, tiny_wan
from torch import Tensor

import genhoi
import genhoi.editing.run
from genhoi import Clip, GenHOIPipeline, WanGenHOIPipeline, attach_pipeline
from genhoi.bases.wan import WanBase
from genhoi.models.sampling import noise

SIZE = (32, 48)
FRAMES = 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("pipe"))


@pytest.fixture
def pipe(folder: Path) -> WanGenHOIPipeline:
    return quiet(WanGenHOIPipeline.from_pretrained(folder))


@pytest.fixture
def clip() -> Clip:
    draw = torch.Generator().manual_seed(7)
    return Clip(torch.randint(0, 256, (FRAMES, *SIZE, 3), dtype=torch.uint8, generator=draw))


@pytest.fixture
def mask() -> Tensor:
    mask = torch.zeros(FRAMES, *SIZE, dtype=torch.bool)
    mask[:, :20, 16:40] = True
    return mask


@pytest.fixture
def mug() -> Tensor:
    draw = torch.Generator().manual_seed(8)
    return torch.randint(0, 256, (20, 30, 3), dtype=torch.uint8, generator=draw)


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def edited(pipe: WanGenHOIPipeline, clip: Any, mask: Any, objects: Any, **options: Any) -> Tensor:
    settings = {
        "prompt": "a hand holds a cup",
        "num_inference_steps": 2,
        "output_type": "latent",
        "generator": torch.Generator().manual_seed(3),
    }
    out: Tensor = pipe(clip, mask, objects, **(settings | options)).frames
    return out


# ------------------------------------------------------------------------------- the condition


def test_the_condition_says_generate_where_stock_wan_says_given(
    pipe: WanGenHOIPipeline, clip: Clip, mask: Tensor
) -> None:
    """As the model is trained: [mask 4 | clip with grey], 1 where to generate."""
    condition = genhoi.edit_condition(pipe.vae, clip.frames, mask, first_frame=clip.frames[0])
    assert condition.shape == (1, 20, 3, 4, 6)
    cleared = mask.clone()
    cleared[0] = False  # frame 0 is given
    assert torch.equal(condition[:, :4], genhoi.conditioning.condition.latent_mask(cleared))
    grey = torch.where(cleared[..., None], 128, clip.frames)
    assert torch.equal(condition[:, 4:], genhoi.encode_frames(pipe.vae, grey))
    stock = WanImageToVideoPipeline.prepare_latents(
        pipe,
        torch.zeros(1, 3, *SIZE),
        1,
        height=32,
        width=48,
        num_frames=9,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )[1]
    assert stock[:, :4, 0].eq(1).all() and condition[:, :4, 0].eq(0).all()
    assert stock[:, :4, 1:].eq(0).all() and condition[:, :4, 1:].any()


def test_a_vae_without_mask_channels_is_refused(clip: Clip, mask: Tensor) -> None:
    vae = type(
        "Vae", (), {"config": type("C", (), dict(scale_factor_temporal=4, scale_factor_spatial=16))}
    )
    with pytest.raises(ValueError, match="vae: got one with 4 frames and 16 x 16 pixels a latent"):
        genhoi.edit_condition(vae, clip.frames, mask)


# ------------------------------------------------------------------------------- the two pipelines


@pytest.mark.parametrize("given", ["nothing", "first", "first and last"])
def test_it_is_the_edit_of_the_command(
    folder: Path,
    clip: Clip,
    mask: Tensor,
    mug: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    given: str,
) -> None:
    """The same condition, noise and noise levels give the same latents and frames."""
    model = tiny_wan(pos_embed_seq_len=34) if given == "first and last" else tiny_wan()
    pipe = quiet(WanGenHOIPipeline.from_pretrained(folder, transformer=model))
    attach_pipeline(pipe, lively_adapter(pipe.transformer))
    finished = None if given == "nothing" else clip.frames[3]
    last = clip.frames[4] if given == "first and last" else None
    start = noise((1, 16, 3, 4, 6), 5, 0)
    arguments = {"prompt": "a red cup", "negative_prompt": "blurry", "image": finished}
    arguments |= {"last_image": last, "strengths": [2.0], "latents": start, "guidance_scale": 4.0}
    ours = edited(pipe, clip, mask, [mug], **arguments)
    shown = edited(pipe, clip, mask, [mug], output_type="np", **arguments)[0]

    other = WanTransformer3DModel.from_config(model.config)
    other.load_state_dict(model.state_dict())
    base = WanBase(folder, device="cpu", dtype=torch.float32, transformer=other)
    pipeline = GenHOIPipeline(base, lively_adapter(base.transformer))
    monkeypatch.setattr(genhoi.editing.run, "noise_levels", lambda *_: pipe.scheduler.sigmas)
    seen: list[Tensor] = []
    with pytest.warns(genhoi.EditWarning):
        made = pipeline(
            clip,
            mask,
            mug,
            first_frame=finished,
            last_frame=last,
            prompt="a red cup",
            negative_prompt="blurry",
            strengths=[2.0],
            steps=2,
            guidance=4.0,
            seed=5,
            size=SIZE,
            crop="none",
            keep_background=False,
            callback=lambda progress: seen.append(progress.latents),
            progress_bar=False,
        )
    torch.testing.assert_close(ours, seen[-1], rtol=1e-4, atol=1e-4)
    off = (torch.from_numpy(shown) * 255).round() - made.frames
    assert off.abs().max() <= 1
    assert not torch.equal(ours, edited(pipe, clip, mask, [255 - mug], **arguments))


def test_experts_share_the_noise_levels(
    folder: Path, clip: Clip, mask: Tensor, mug: Tensor
) -> None:
    """Wan 2.2: both experts see the object, each with its own guidance."""
    high = tiny_wan(image=False, in_channels=36)
    low = tiny_wan(image=False, in_channels=36)
    low.proj_out.weight.data.neg_()
    pipe = quiet(
        WanGenHOIPipeline.from_pretrained(
            folder, transformer=high, transformer_2=low, boundary_ratio=0.9, image_encoder=None
        )
    )
    handle = attach_pipeline(pipe, lively_adapter(high))
    options: dict[str, Any] = {"guidance_scale": 3.0, "guidance_scale_2": 2.0}
    both = edited(pipe, clip, mask, [mug], **options)
    assert handle.reference_passes == 2
    pipe.enable_model_cpu_offload(device="cpu")
    assert torch.equal(edited(pipe, clip, mask, [mug], **options), both)
    handle.detach()
    with pytest.raises(RuntimeError, match="not every transformer of the pipeline has an adapter"):
        edited(pipe, clip, mask, [mug], **options)
    bare = edited(pipe, clip, mask, None, **options)
    assert (both - bare).abs().max() > 1e-3


# ----------------------------------------------------------------------------- as diffusers has it


def test_what_diffusers_does_with_a_pipeline(
    folder: Path, clip: Clip, mask: Tensor, mug: Tensor, tmp_path: Path
) -> None:
    """from_pipe, another scheduler, callbacks, several videos, saving."""
    stock = WanImageToVideoPipeline.from_pretrained(folder)
    handle = attach_pipeline(stock, lively_adapter(stock.transformer))
    pipe = quiet(WanGenHOIPipeline.from_pipe(stock))
    assert pipe.attachment is handle
    pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config, flow_shift=5.0)
    steps = []

    def after(pipe: Any, step: int, t: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        steps.append((step, tuple(tensors["latents"].shape)))
        return tensors

    two = edited(pipe, clip, mask, [mug], num_videos_per_prompt=2, callback_on_step_end=after)
    assert steps == [(0, (2, 16, 3, 4, 6)), (1, (2, 16, 3, 4, 6))]
    assert not torch.equal(two[0], two[1]) and not two.isnan().any()
    pipe.save_pretrained(tmp_path / "saved")
    assert type(DiffusionPipeline.from_pretrained(tmp_path / "saved")) is WanImageToVideoPipeline


def test_model_offload(pipe: WanGenHOIPipeline, clip: Clip, mask: Tensor, mug: Tensor) -> None:
    """With diffusers' hooks, which move one component at a time."""
    attach_pipeline(pipe, lively_adapter(pipe.transformer))
    wanted = edited(pipe, clip, mask, [mug])
    pipe.enable_model_cpu_offload(device="cpu")
    assert pipe.transformer._hf_hook is not None
    for _ in range(2):
        assert torch.equal(edited(pipe, clip, mask, [mug]), wanted)


def test_forms_of_clips_masks_and_pictures(
    pipe: WanGenHOIPipeline, clip: Clip, mask: Tensor, mug: Tensor
) -> None:
    """PIL, arrays and tensors are the same clip, mask and picture."""
    attach_pipeline(pipe, lively_adapter(pipe.transformer))
    wanted = edited(pipe, clip, mask, [mug])
    images = [Image.fromarray(frame.numpy()) for frame in clip.frames]
    masks = [Image.fromarray(frame.numpy()) for frame in mask]
    array = clip.frames.numpy().astype(np.float32) / 255
    floats = mask.numpy().astype(np.float32)
    picture = Image.fromarray(mug.numpy())
    assert torch.equal(edited(pipe, images, masks, [picture]), wanted)
    assert torch.equal(edited(pipe, array, floats, [mug.numpy()]), wanted)
    tensor = torch.from_numpy(array).permute(0, 3, 1, 2)
    assert torch.equal(edited(pipe, tensor, [mask], (mug,)), wanted)
    halves = edited(pipe, clip, [mask, mask.roll(8, 2)], [mug, 255 - mug])
    assert not torch.equal(halves, wanted)
    small = edited(pipe, clip, mask, [mug], height=16, width=32)
    assert small.shape == (1, 16, 3, 2, 4)


def test_what_does_not_fit_is_refused(
    pipe: WanGenHOIPipeline, clip: Clip, mask: Tensor, mug: Tensor
) -> None:
    with pytest.raises(RuntimeError, match=r"call genhoi\.attach_pipeline"):
        edited(pipe, clip, mask, [mug])
    attach_pipeline(pipe, lively_adapter(pipe.transformer))
    for arguments, message in (
        ((clip.frames[:8], mask[:8], [mug]), r"video: got 8 frames, wanted 1 \+ 4 n, such as 5 or"),
        ((clip, mask[:5], [mug]), r"mask: got shape \(5, 32, 48\), wanted \(9, 32, 48\) as the"),
        ((clip, [mask, mask, mask], [mug]), "mask: got 3 masks for 1 objects"),
        ((clip.frames[..., 0], mask, [mug]), r"video: got shape \(9, 32, 48\), wanted a list of"),
        ((clip.frames.float(), mask, [mug]), "video: got"),
        ((clip.frames[:, :30], mask[:, :30], [mug]), r"height, width: got \(30, 48\), wanted mult"),
        ((clip, torch.zeros_like(mask), [mug]), "mask: got one of object 1 without a single token"),
    ):
        with pytest.raises(ValueError, match=message):
            edited(pipe, *arguments)
    with pytest.raises(TypeError, match="video: got str"):
        edited(pipe, "clip.mp4", mask, [mug])
    with pytest.raises(ValueError, match=r"strengths: got \[1.0, 2.0\], wanted 1 positive"):
        edited(pipe, clip, mask, [mug], strengths=[1.0, 2.0])
    text_to_video = WanGenHOIPipeline(**(pipe.components | {"transformer": tiny_wan(image=False)}))
    with pytest.raises(ValueError, match="got 16 input channels for 16 of latents, wanted 36"):
        edited(text_to_video, clip, mask, None)
