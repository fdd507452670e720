"""Clip to clip, on a mosaic base and on a folder of diffusers' components."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.wan import pipeline_wan_i2v
from support.tiny_base import save_tiny_base
from support.tiny_wan import GRID, inputs, lively_adapter, reference, some_tokens, tiny_wan
from torch import Tensor

from genhoi import Clip, attach
from genhoi.bases.load import base_config, check_base, load_base
from genhoi.bases.wan import WanBase
from genhoi.bases.wan_files import find_index, locate_base
from genhoi.editing.crop import choose_crop
from genhoi.editing.joining import join_window, match_colour
from genhoi.editing.parts import Parts
from genhoi.editing.paste import paste
from genhoi.editing.pipeline import GenHOIPipeline, Progress
from genhoi.editing.windows import windows
from genhoi.models.adapter import GenHOIAdapter
from genhoi.models.sampling import denoise, noise_levels
from genhoi.models.wan.model import WanModel

F, H, W = 9, 32, 48
FAST: dict[str, Any] = {"steps": 2, "window": 5, "keep_background": False}

# Random clips of 32 x 48 pixels are far from what any base has seen.
pytestmark = pytest.mark.filterwarnings("ignore::genhoi.editing.plan.EditWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def tiny() -> GenHOIPipeline:
    return GenHOIPipeline.from_pretrained("mosaic-untrained")


@pytest.fixture(scope="module")
def wan(folder: Path) -> GenHOIPipeline:
    return GenHOIPipeline.from_pretrained(folder, untrained_adapter=True)


@pytest.fixture(params=["tiny", "wan"])
def pipeline(request: pytest.FixtureRequest) -> GenHOIPipeline:
    chosen = request.getfixturevalue(request.param)
    assert isinstance(chosen, GenHOIPipeline)
    return chosen


def clip(frames: int = F) -> Clip:
    draw = torch.Generator().manual_seed(0)
    return Clip(torch.randint(0, 256, (frames, H, W, 3), dtype=torch.uint8, generator=draw), 12)


def box(left: int = 16, frames: int = F) -> Tensor:
    mask = torch.zeros(frames, H, W, dtype=torch.bool)
    mask[:, :16, left : left + 16] = True
    return mask


def speck() -> Tensor:
    """Draw a mask that nearest sampling misses nowhere, yet no token is mostly inside."""
    mask = torch.zeros(F, H, W, dtype=torch.bool)
    mask[:, :3, 16:19] = True
    return mask


def picture(seed: int = 1) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (20, 12, 3), dtype=torch.uint8, generator=draw)


# ------------------------------------------------------------------------------------- the whole


def test_clip_to_clip(pipeline: GenHOIPipeline) -> None:
    """Length, size and rate stay; the same seed gives the same clip, and every input matters."""
    before = pipeline.attachment.reference_passes
    settings = FAST | ({"prompt": "a cup"} if pipeline.base.settings.takes_text else {})
    edited = pipeline(clip(), box(), picture(), **settings)
    assert edited.frames.shape == (F, H, W, 3) and edited.frames.dtype == torch.uint8
    assert edited.fps == 12
    assert pipeline.attachment.reference_passes == before + 1, "once for both windows"
    assert torch.equal(pipeline(clip(), box(), picture(), **settings).frames, edited.frames)
    first = picture(5).repeat(2, 4, 1)[:H, :W].contiguous()
    of_texts: list[dict[str, Any]] = [
        {"guidance": 1.0},
        {"prompt": "a hand"},
        {"negative_prompt": "blurry"},
    ]
    for other in (
        {"seed": 1},
        {"first_frame": first},
        {"last_frame": first},
        {"shift": 1.0},
        *(of_texts if pipeline.base.settings.takes_text else []),
    ):
        assert not torch.equal(
            pipeline(clip(), box(), picture(), **settings | other).frames, edited.frames
        ), other
    # float32 pictures of the object leave traces below the 8 bits of a random VAE.
    if pipeline.base.trained is False:
        assert not torch.equal(
            pipeline(clip(), box(), picture(2), **settings).frames, edited.frames
        )


def test_windows_join_at_the_last_frame(tiny: GenHOIPipeline) -> None:
    """A window by itself, given the last frame of the one before, is that window of a long clip."""
    seen: list[Progress] = []
    edited = tiny(clip(), box(), picture(), **FAST, callback=seen.append).frames
    short = tiny(Clip(clip().frames[:5], 12), box(frames=5), picture(), **FAST).frames
    assert torch.equal(edited[:5], short)
    assert [(p.window, p.step) for p in seen] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert [p.done for p in seen] == [0.25, 0.5, 0.75, 1.0]
    assert all(p.seconds_left is not None and p.seconds_left >= 0 for p in seen)
    assert seen[0].latents.shape == (1, 16, 2, H // 8, W // 8)


@pytest.mark.parametrize(
    "frames, window, overlap, spans",
    [
        (9, 5, 1, [(0, 5), (4, 9)]),
        (53, 49, 1, [(0, 29), (28, 53)]),
        (81, 81, 1, [(0, 81)]),
        (145, 49, 9, [(0, 45), (36, 81), (72, 113), (104, 145)]),
        (9, 49, 9, [(0, 9)]),
    ],
)
def test_windows_are_of_one_length(
    frames: int, window: int, overlap: int, spans: list[tuple[int, int]]
) -> None:
    """A base has never seen a last window of a few frames."""
    assert windows(frames, window, overlap) == spans


def test_any_window_fits() -> None:
    for frames in range(5, 140, 4):
        for window in range(5, 90, 4):
            for overlap in range(1, window // 2 + 1, 4):
                spans = windows(frames, window, overlap)
                assert spans[0][0] == 0 and spans[-1][1] == frames
                lengths = [end - begin for begin, end in spans]
                assert max(lengths) - min(lengths) in (0, 4) and max(lengths) <= window
                assert all(length % 4 == 1 and length > 1 for length in lengths)
                joins = itertools.pairwise(spans)
                assert all(a[1] - b[0] == overlap for a, b in joins)


def test_windows_of_another_length(tiny: GenHOIPipeline) -> None:
    calls: list[Progress] = []
    edited = tiny(
        clip(13), box(frames=13), picture(), **FAST | {"window": 9}, callback=calls.append
    )
    assert edited.num_frames == 13
    assert [p.latents.shape[2] for p in calls] == [3, 3, 2, 2]


def test_frames_that_are_not_1_plus_4_n(tiny: GenHOIPipeline) -> None:
    """The model makes up to three more, copies of the last at its input, which are left out."""
    edited = tiny(clip(7), box(frames=7), picture(), **FAST)
    assert edited.num_frames == 7
    longer = Clip(torch.cat([clip(7).frames, clip(7).frames[-1:].repeat(2, 1, 1, 1)]), 12)
    assert torch.equal(tiny(longer, box(), picture(), **FAST).frames[:7], edited.frames)


def test_a_bar_shows_how_far_it_is(
    tiny: GenHOIPipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny(clip(), box(), picture(), **FAST)
    said = capsys.readouterr()
    assert "window 2 of 2: 100%" in said.err and "4/4" in said.err and said.out == ""
    tiny(clip(), box(), picture(), **FAST, progress_bar=False)
    assert capsys.readouterr().err == ""


def test_windows_fade_over_what_they_have_in_common() -> None:
    out = torch.zeros(12, 1, 1, 3, dtype=torch.uint8)
    join_window(out, torch.full((9, 1, 1, 3), 100, dtype=torch.uint8), 0, 0)
    join_window(out, torch.full((8, 1, 1, 3), 200, dtype=torch.uint8), 4, 5)
    values = out[:, 0, 0, 0].tolist()
    assert values == [100] * 5 + [120, 140, 160, 180] + [200] * 3


def test_an_overlap_changes_what_comes_after_the_first_window(tiny: GenHOIPipeline) -> None:
    more = FAST | {"window": 9}
    plain = tiny(clip(17), box(frames=17), picture(), **more).frames
    faded = tiny(clip(17), box(frames=17), picture(), **more, overlap=5).frames
    assert plain.shape == faded.shape and not torch.equal(plain[9:], faded[9:])


def test_colours_are_matched_outside_the_mask() -> None:
    draw = torch.Generator().manual_seed(0)
    source = torch.randint(60, 180, (5, 16, 16, 3), dtype=torch.uint8, generator=draw)
    mask = torch.zeros(5, 16, 16, dtype=torch.bool)
    mask[:, :8] = True
    drifted = source + torch.tensor([10, 0, 20], dtype=torch.uint8)
    drifted[mask] += 5  # what the edit changed is not drift
    matched = match_colour(drifted, source, mask)
    assert torch.equal(matched[~mask], source[~mask])
    assert torch.equal(matched[mask], source[mask] + 5)
    assert torch.equal(match_colour(drifted, source, torch.ones_like(mask)), drifted)


def test_a_fresh_adapter_is_refused_on_a_trained_base(folder: Path, tmp_path: Path) -> None:
    """Before any weights are loaded: 14B would run for hours, and add nothing."""
    with pytest.raises(ValueError, match=r"adapter: got none, wanted one .*--untrained-adapter"):
        GenHOIPipeline.from_pretrained(folder)
    base = load_base(folder)
    with pytest.raises(ValueError, match="adapter: got none"):
        GenHOIPipeline(base)
    fresh = GenHOIAdapter.for_transformer(base.transformer)
    assert fresh.is_fresh
    fresh.save_pretrained(tmp_path / "fresh")
    with pytest.raises(ValueError, match="fresh, whose weights add nothing yet"):
        GenHOIPipeline.from_pretrained(folder, adapter=tmp_path / "fresh")
    assert not GenHOIPipeline(base, fresh, untrained_adapter=True).adapter_trained
    with torch.no_grad():
        fresh.layers[0].lora_v.up[0, 0] = 1
    assert not fresh.is_fresh and GenHOIPipeline(load_base(folder), fresh).adapter_trained


def test_two_objects_with_their_own_masks_and_strengths(tiny: GenHOIPipeline) -> None:
    def edited(pictures: tuple[int, int], strengths: list[float] | None) -> Tensor:
        objects = [picture(seed) for seed in pictures]
        masks = [box(0), box(32)]
        return tiny(clip(), masks, objects, strengths=strengths, **FAST).frames.int()

    both = edited((1, 2), None)
    assert (edited((1, 2), [1.0, 1.0]) - both).abs().max() <= 1
    assert not torch.equal(edited((2, 1), None), both), "which object is where matters"
    assert not torch.equal(edited((1, 2), [1.0, 8.0]), both)
    assert not torch.equal(edited((1, 2), [8.0, 1.0]), edited((1, 2), [1.0, 8.0]))


def test_bfloat16(folder: Path) -> None:
    pipeline = GenHOIPipeline.from_pretrained(folder, dtype=torch.bfloat16, untrained_adapter=True)
    assert pipeline.attachment.adapter.layers[0].lora_k.down.dtype == torch.bfloat16
    assert pipeline(clip(5), box(frames=5), picture(), **FAST).num_frames == 5


def test_release_preset_and_schedule(folder: Path) -> None:
    pipeline = GenHOIPipeline.from_pretrained(
        folder, preset="release", schedule=-1.0, untrained_adapter=True
    )
    options = pipeline.attachment.options
    assert (options.mask_gate, options.flow_gate, options.schedule) == (False, "sequence", -1.0)
    assert pipeline(clip(), box(), picture(), **FAST).num_frames == F


def test_a_saved_adapter(folder: Path, tmp_path: Path, wan: GenHOIPipeline) -> None:
    lively_adapter(tiny_wan()).save_pretrained(tmp_path)
    pipeline = GenHOIPipeline.from_pretrained(folder, adapter=tmp_path)
    assert pipeline.adapter_trained and not wan.adapter_trained
    latents: list[Tensor] = []
    for each in (pipeline, wan):
        each(
            clip(5), box(frames=5), picture(), **FAST, callback=lambda p: latents.append(p.latents)
        )
    assert not torch.equal(latents[1], latents[3])


# ---------------------------------------------------------------------------------------- resume


def test_an_interrupted_edit_goes_on(tiny: GenHOIPipeline, tmp_path: Path) -> None:
    whole = tiny(clip(), box(), picture(), **FAST).frames
    parts = tmp_path / "parts"

    def interrupt(progress: Progress) -> None:
        if (progress.window, progress.step) == (1, 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny(clip(), box(), picture(), **FAST, parts=parts, callback=interrupt)
    assert sorted(p.name for p in parts.iterdir()) == ["job.json", "window-0000.npy"]
    seen: list[Progress] = []
    again = tiny(clip(), box(), picture(), **FAST, parts=parts, callback=seen.append).frames
    assert torch.equal(again, whole)
    assert [p.window for p in seen] == [1, 1] and seen[-1].done == 1
    # Everything is there: nothing runs.
    again = tiny(clip(), box(), picture(), **FAST, parts=parts, callback=seen.append).frames
    assert torch.equal(again, whole) and len(seen) == 2


@pytest.mark.parametrize("change", [{"seed": 1}, {"shift": 2.0}, {"steps": 3}, {"strengths": [2]}])
def test_parts_of_another_edit_are_refused(
    tiny: GenHOIPipeline, tmp_path: Path, change: dict[str, Any]
) -> None:
    tiny(clip(), box(), picture(), **FAST, parts=tmp_path)
    with pytest.raises(FileExistsError, match="unfinished edit with other inputs or settings"):
        tiny(clip(), box(), picture(), **FAST | change, parts=tmp_path)
    with pytest.raises(FileExistsError, match="other inputs"):
        tiny(clip(), box(0), picture(), **FAST, parts=tmp_path)
    edited = tiny(clip(), box(), picture(), **FAST | change, parts=tmp_path, discard_parts=True)
    assert torch.equal(edited.frames, tiny(clip(), box(), picture(), **FAST | change).frames)


def test_parts_of_other_weights_are_refused(tiny: GenHOIPipeline, tmp_path: Path) -> None:
    tiny(clip(), box(), picture(), **FAST, parts=tmp_path)
    weight = tiny.attachment.adapter.layers[1].lora_v.up
    with torch.no_grad():
        weight[0] += 1
    with pytest.raises(FileExistsError, match="other inputs"):
        tiny(clip(), box(), picture(), **FAST, parts=tmp_path)
    with torch.no_grad():
        weight[0] -= 1


def test_parts_leave_other_peoples_folders_alone(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(FileExistsError, match="not a folder of unfinished windows"):
        Parts(tmp_path, "job")
    with pytest.raises(FileExistsError, match="not a folder of unfinished windows"):
        Parts(tmp_path, "job", discard=True)


# -------------------------------------------------------------------------------------- sampling


class Linear:
    """A model whose velocity is easy to follow: the first channel, scaled by the words."""

    dtype = torch.bfloat16

    def __init__(self) -> None:
        self.calls: list[tuple[torch.dtype, float]] = []

    def cache_context(self, name: str) -> Any:
        import contextlib

        return contextlib.nullcontext()

    def __call__(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        **_: Any,
    ) -> tuple[Tensor]:
        assert hidden_states.dtype == self.dtype
        self.calls.append((timestep.dtype, timestep[0].item()))
        return (hidden_states[:, :1] * encoder_hidden_states.mean(),)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_euler_steps_against_diffusers(guidance: float) -> None:
    model, sigmas = Linear(), noise_levels(4, 5.0)
    x = torch.randn(1, 1, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    text, no_text = torch.full((1, 1, 1), 0.5), torch.full((1, 1, 1), 0.25)
    denoised = denoise(
        WanModel(model),
        x,
        torch.zeros(1, 3, 2, 2, 2),
        text=text,
        no_text=None if guidance == 1 else no_text,
        image=None,
        guidance=guidance,
        sigmas=sigmas,
        after_step=lambda step, latents: None,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(sigmas=[1, 0.75, 0.5, 0.25])
    wanted = x
    for t in scheduler.timesteps:
        low = wanted.bfloat16()
        v, v0 = (low * 0.5).float(), (low * 0.25).float()
        v = v0 + guidance * (v - v0)
        wanted = scheduler.step(v, t, wanted, return_dict=False)[0]
    torch.testing.assert_close(denoised, wanted, rtol=1e-5, atol=1e-5)
    assert len(model.calls) == (4 if guidance == 1 else 8), "one branch without guidance"
    # Exact timesteps although the model is in bfloat16, which would make 937.5 of them 936.
    assert {dtype for dtype, _ in model.calls} == {torch.float32}
    assert any(abs(t - 937.5) < 1e-3 for _, t in model.calls)


# ------------------------------------------------------------------------ what attach has for it


def test_a_bias_of_log_two_is_the_same_reference_twice() -> None:
    model = tiny_wan()
    handle = attach(model, lively_adapter(model))
    with torch.inference_mode():
        handle.set_reference([reference()], some_tokens(), ref_bias=[math.log(2)])
        biased = model(**inputs(model))[0]
        handle.set_reference([reference(), reference()], some_tokens())
        twice = model(**inputs(model))[0]
        handle.set_reference([reference()], some_tokens())
        once = model(**inputs(model))[0]
    torch.testing.assert_close(biased, twice, rtol=1e-4, atol=1e-5)
    assert (biased - once).abs().max() > 1e-3


@pytest.mark.parametrize("bias", [[0.0, 1.0], [math.inf], [math.nan], []])
def test_a_bias_that_does_not_fit(bias: list[float]) -> None:
    model = tiny_wan()
    handle = attach(model, lively_adapter(model))
    with pytest.raises(ValueError, match=r"ref_bias: got .* wanted 1 finite numbers"):
        handle.set_reference([reference()], some_tokens(), ref_bias=bias)
    with pytest.raises(TypeError, match=r"ref_bias: got 1.0"):
        handle.set_reference([reference()], some_tokens(), ref_bias=1.0)  # type: ignore[arg-type]


def test_another_mask_keeps_keys_and_values() -> None:
    model = tiny_wan()
    handle = attach(model, lively_adapter(model))
    none = torch.zeros(1, GRID[0] * GRID[1] * GRID[2], dtype=torch.bool)
    with torch.inference_mode():
        handle.set_reference([reference()], none)
        handle.set_mask(some_tokens())
        first = model(**inputs(model))[0]
        handle.set_mask(some_tokens(seed=9))
        second = model(**inputs(model))[0]
        handle.set_mask(none)
        third = model(**inputs(model))[0]
        assert handle.reference_passes == 1
        for mask, output in ((some_tokens(), first), (some_tokens(seed=9), second), (none, third)):
            handle.set_reference([reference()], mask)
            assert torch.equal(model(**inputs(model))[0], output)


def test_the_callers_adapter_stays_as_it_is() -> None:
    """In another dtype, and apart from the pipeline's own."""
    base = load_base("mosaic-untrained", dtype=torch.bfloat16)
    adapter = GenHOIAdapter.for_transformer(base.transformer)
    before = {name: x.clone() for name, x in adapter.state_dict().items()}
    pipeline = GenHOIPipeline(base, adapter)
    own = pipeline.attachment.adapter
    assert own is not adapter and own.config == adapter.config
    assert {x.dtype for x in own.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        for x in own.parameters():
            x.add_(1)
    after = adapter.state_dict()
    assert all(x.dtype == torch.float32 and torch.equal(after[n], x) for n, x in before.items())


# ------------------------------------------------------------------------------------------ bases


def test_text_is_encoded_as_diffusers_does(
    wan: GenHOIPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ftfy:
        fix_text = staticmethod(lambda text: text)

    # diffusers calls the package ftfy, which it does not require.
    monkeypatch.setattr(pipeline_wan_i2v, "ftfy", Ftfy, raising=False)
    assert isinstance(wan.base, WanBase)
    for text in ("", "a hand  holds a red cup"):
        theirs, _ = wan.base.pipe.encode_prompt(text, None, False, max_sequence_length=512)
        torch.testing.assert_close(wan.base.encode_text(text), theirs, rtol=1e-5, atol=1e-6)


def test_latents_are_normalised(wan: GenHOIPipeline) -> None:
    """As diffusers' own pipeline prepares its condition."""
    assert isinstance(wan.base, WanBase)
    vae = wan.base.pipe.vae
    latents = wan.base.encode(clip(5).frames)
    video = clip(5).frames.permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    raw = vae.encode(video).latent_dist.mode()
    mean, std = (
        torch.tensor(x).view(1, 16, 1, 1, 1)
        for x in (vae.config.latents_mean, vae.config.latents_std)
    )
    torch.testing.assert_close(latents * std + mean, raw, rtol=1e-5, atol=1e-5)
    assert wan.base.decode(latents).shape == (5, H, W, 3)


def test_prompts_are_never_cut(wan: GenHOIPipeline) -> None:
    with pytest.raises(ValueError, match=r"prompt: got .* wanted at most 512"):
        wan.base.encode_text("cup " * 600)


def test_a_missing_base_says_what_to_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    import huggingface_hub

    def no_connection(*_: Any, **__: Any) -> None:
        raise ConnectionError

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", no_connection)
    for name in (str(tmp_path / "none"), "./none", "none"):
        with pytest.raises(
            FileNotFoundError, match=r"base: there is no folder .* 46 GB in bfloat16"
        ):
            locate_base(name)
    with pytest.raises(FileNotFoundError, match=r"hf download nobody/nothing-at-all.*91 GB"):
        locate_base("nobody/nothing-at-all")


def test_incomplete_and_other_bases_are_refused(folder: Path, tmp_path: Path) -> None:
    def refused(error: type[Exception], match: str) -> None:
        with pytest.raises(error, match=match):
            GenHOIPipeline.from_pretrained(broken)

    broken = tmp_path / "base"
    broken.mkdir()
    refused(FileNotFoundError, "there is no .*model_index.json")
    shutil.copytree(folder, broken, dirs_exist_ok=True)
    for weights in broken.glob("*/*.safetensors"):
        weights.unlink()
    names = r"lacks transformer/ \(weights\), vae/ .*, text_encoder/ .*, image_encoder/ .*fetch"
    refused(FileNotFoundError, names)
    shutil.copytree(folder, broken, dirs_exist_ok=True)
    config = broken / "transformer" / "config.json"
    sizes = json.loads(config.read_text())
    config.write_text(json.dumps(sizes | {"in_channels": 16}))
    refused(ValueError, "from 16 to 16 channels, wanted 36 to 16")
    config.write_text(json.dumps(sizes))
    index = broken / "model_index.json"
    values = json.loads(index.read_text())
    index.write_text(json.dumps(values | {"transformer_2": ["diffusers", "X"]}))
    refused(ValueError, "boundary_ratio None in model_index.json, wanted a number")
    index.write_text(json.dumps(values | {"_class_name": "WanPipeline"}))
    refused(ValueError, "from 36 to 16 channels, wanted 16 to 16 as for text-to-video")
    index.write_text(json.dumps(values | {"_class_name": "WanAnimatePipeline"}))
    refused(ValueError, "holds a WanAnimatePipeline, wanted a WanImageToVideoPipeline")


def test_half_a_download_is_refused(folder: Path, tmp_path: Path) -> None:
    """The parts that an index names and that are not there are listed."""
    base = tmp_path / "base"
    shutil.copytree(folder, base)
    vae = base / "vae"
    (part,) = vae.glob("*.safetensors")
    shards = {"a": "1-of-3.safetensors", "b": "2-of-3.safetensors", "c": "3-of-3.safetensors"}
    part.rename(vae / shards["a"])
    index = vae / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(
        FileNotFoundError, match=r"lacks vae/2-of-3\.safet\w+, vae/3-of-3\.safet\w+;"
    ):
        check_base(base)
    for name in shards.values():
        (vae / name).touch()
    check_base(base)


def test_a_pipeline_says_what_it_is(folder: Path, tmp_path: Path) -> None:
    assert (find_index(folder) or {})["_class_name"] == "WanImageToVideoPipeline"
    assert find_index(tmp_path) is None and find_index(tmp_path / "none") is None
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match=r"model_index\.json is not JSON"):
        base_config(tmp_path)


def test_a_config_is_read_without_weights(folder: Path, tmp_path: Path) -> None:
    for name in ("model_index.json", "transformer/config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(folder / name, tmp_path / name)
    assert base_config(tmp_path) == base_config(folder)
    with pytest.raises(FileNotFoundError, match=r"lacks transformer/ .*, vae/ .*tokenizer_config"):
        check_base(tmp_path)
    with pytest.raises(FileNotFoundError, match="lacks vae/"):
        check_base(tmp_path, transformer=folder / "transformer")
    check_base(folder)


@pytest.mark.parametrize("offload", ["model", "group", "disk"])
def test_offloading_needs_a_gpu(folder: Path, offload: Any) -> None:
    for base in ("mosaic-untrained", folder):
        with pytest.raises(ValueError, match="offload: got"):
            GenHOIPipeline.from_pretrained(base, offload=offload)


def test_group_offload_runs(folder: Path) -> None:
    """From the CPU to the CPU: the order of attaching and placing, not the saving."""
    base = WanBase(folder, device="cpu", dtype=torch.float32)
    pipeline = GenHOIPipeline(base, untrained_adapter=True)
    base.place("group")
    assert pipeline(clip(5), box(frames=5), picture(), **FAST).num_frames == 5


# ------------------------------------------------------------------------------------- background


@pytest.mark.parametrize("size, edge", [((32, 48), 4), ((480, 496), 16)])
def test_the_background_keeps_its_bytes(size: tuple[int, int], edge: int) -> None:
    source = torch.randint(0, 256, (2, *size, 3), dtype=torch.uint8)
    edited = 255 - source
    mask = torch.zeros(2, *size, dtype=torch.bool)
    mask[:, 4:12, 4:12] = True
    crop = choose_crop(mask, native=size)
    assert crop.is_whole and crop.size == size
    kept = paste(source, edited, mask, crop, keep_background=True)
    assert torch.equal(kept[mask], edited[mask])
    beyond = 12 + edge
    assert torch.equal(kept[:, beyond:], source[:, beyond:])
    assert torch.equal(kept[:, :, beyond:], source[:, :, beyond:])
    change = kept[:, 6, 12:beyond].float() - source[:, 6, 12:beyond].float()
    whole = edited[:, 6, 12:beyond].float() - source[:, 6, 12:beyond].float()
    share = (change * whole).sum((0, 2)) / (whole**2).sum((0, 2))
    assert (share.diff() < 1e-2).all() and share[0] > 0.75 and share[-1] < 0.25


def test_the_background_is_kept_unless_it_is_not_wanted(tiny: GenHOIPipeline) -> None:
    raw = FAST | {"keep_background": False}
    kept = tiny(clip(), box(0), picture(), steps=2, window=5).frames
    not_kept = tiny(clip(), box(0), picture(), **raw).frames
    assert torch.equal(kept[:, :, 32:], clip().frames[:, :, 32:])
    assert torch.equal(kept[:, :16, :16], not_kept[:, :16, :16])
    assert not torch.equal(not_kept[:, :, 32:], clip().frames[:, :, 32:])


# --------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "changes, error, match",
    [
        ({"masks": []}, ValueError, "masks: got 0, wanted 1"),
        ({"objects": []}, ValueError, "objects: got none"),
        ({"objects": [picture()] * 33}, ValueError, "objects: got 33, wanted at most 32"),
        ({"masks": box().float()}, TypeError, "masks: got torch.float32, wanted torch.bool"),
        ({"masks": box(frames=5)}, ValueError, r"masks: got shape \(5, 32, 48\), wanted \(9"),
        ({"masks": torch.zeros_like(box())}, ValueError, "masks: got one that is False throughout"),
        (
            {"masks": speck(), "mask_rule": "release"},
            ValueError,
            "mask 1 of 1 is too small for the model.* grow the mask",
        ),
        ({"objects": picture().float()}, TypeError, "image: got torch.float32"),
        ({"clip": clip(4), "masks": box(frames=4)}, ValueError, "clip: got 4 frames, wanted at"),
        ({"clip": "clip.mp4"}, TypeError, "clip: got 'clip.mp4', wanted a Clip; .*read_clip"),
        ({"masks": "mask.mp4"}, TypeError, "masks: got 'mask.mp4', wanted a tensor; .*read_mask"),
        ({"masks": [Path("m.png")]}, TypeError, r"masks: got .*Path\('m.png'\), .*read_mask"),
        ({"objects": "mug.png"}, TypeError, "objects: got 'mug.png', .*read_image"),
        ({"first_frame": "mug.png"}, TypeError, "first_frame: got 'mug.png', .*read_image"),
        (
            {"clip": clip(8), "masks": box(frames=8), "last_frame": clip().frames[0]},
            ValueError,
            r"last_frame: got one for a clip of 8 frames, wanted 1 \+ 4 n",
        ),
        ({"crop": "face"}, ValueError, "crop: got 'face', wanted 'auto' or 'none'"),
        ({"size": (30, 48)}, ValueError, r"size: got \(30, 48\), wanted .* multiples of 16"),
        ({"overlap": 2}, ValueError, "overlap: got 2"),
        ({"overlap": 5}, ValueError, "overlap: got 5, wanted .* at most half of the window of 5"),
        ({"first_frame": picture()}, ValueError, "first_frame: got torch.uint8 of shape"),
        ({"last_frame": clip().frames[0].float()}, ValueError, "last_frame: got torch.float32"),
        ({"strengths": [1.0, 1.0]}, ValueError, "strengths: got .* wanted 1 positive numbers"),
        ({"strengths": [0.0]}, ValueError, "leave an object out to give it none"),
        ({"steps": 0}, ValueError, "steps: got 0"),
        ({"shift": 0.0}, ValueError, "shift: got 0.0"),
        ({"guidance": math.nan}, ValueError, "guidance: got nan"),
        ({"guidance": 5.0}, ValueError, "wanted 1: this base takes no text"),
        ({"prompt": "a cup"}, ValueError, "prompt: got 'a cup', wanted none"),
        ({"window": 6}, ValueError, "window: got 6"),
        ({"mask_rule": "most"}, ValueError, "rule: got 'most'"),
    ],
)
def test_refusals_come_before_any_work(
    tiny: GenHOIPipeline, changes: dict[str, Any], error: type[Exception], match: str
) -> None:
    arguments = {"clip": clip(), "masks": box(), "objects": picture()} | FAST | changes
    before = tiny.attachment.reference_passes
    with pytest.raises(error, match=match):
        tiny(**arguments)
    assert tiny.attachment.reference_passes == before


# -------------------------------------------------------------------------- attention to objects


@pytest.mark.parametrize("options", [{}, {"mask_gate": False}])
def test_attention_to_the_objects(options: dict[str, Any]) -> None:
    """The share against softmax written out, on the processor's own queries and keys."""
    model = tiny_wan()
    handle = attach(model, lively_adapter(model), **options)
    tokens = some_tokens()
    seeing = tokens if handle.options.mask_gate else None
    handle.set_reference([reference()], seeing, ref_bias=[1.0])
    meter = handle.attention_share(1)
    kept: list[Any] = []
    processor = handle.transformer.blocks[1].attn1.processor
    with torch.inference_mode():
        processor.observer = lambda *args: kept.extend(args)
        model(**inputs(model))
        meter.watch_next()
        model(**inputs(model))
        assert processor.observer is None
    q, k, current = kept
    keys = torch.cat([k, current.k_ref], dim=1)
    logits = torch.einsum("bnhd,bmhd->bhnm", q, keys).double() / q.shape[-1] ** 0.5
    logits[..., k.shape[1] :] += 1.0
    wanted = logits.softmax(-1)[..., k.shape[1] :].sum(-1).mean(1).view(GRID).float()
    share = meter.share
    assert share is not None and share.shape == GRID
    seen = torch.ones(GRID, dtype=torch.bool) if options else tokens.view(GRID)
    torch.testing.assert_close(share[seen], wanted[seen], rtol=1e-4, atol=1e-5)
    assert share[~seen].isnan().all()


@pytest.mark.parametrize("steps", [1, 2])
def test_attention_comes_with_the_last_step(tiny: GenHOIPipeline, steps: int) -> None:
    seen: list[Progress] = []
    more: dict[str, Any] = {"steps": steps, "attention_layer": 1, "callback": seen.append}
    edited = tiny(clip(), box(), picture(), **FAST | more)
    plain = tiny(clip(), box(), picture(), **FAST | {"steps": steps})
    assert torch.equal(edited.frames, plain.frames), "looking changes nothing"
    assert [p.attention is not None for p in seen] == ([False] * (steps - 1) + [True]) * 2
    first, second = (p.attention for p in seen if p.attention is not None)
    assert first.shape == (2, 2, 3)
    assert first[:, 0, 1].min() > 0 and first.isnan().sum() == first.numel() - 2
    assert second[0].isnan().all(), "finished, so it sees no object"
    with pytest.raises(ValueError, match="attention_layer: got 4, wanted 0 to 3"):
        tiny(clip(), box(), picture(), **FAST, attention_layer=4)
