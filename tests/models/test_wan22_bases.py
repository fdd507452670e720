"""Bases of Wan 2.2, text-to-video and FLF2V: how they are told, loaded, and denoise."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.tiny_base import save_tiny_base
from support.tiny_wan import lively_adapter, reference
from support.tiny_wan22 import PIPELINES, Form, save_tiny_pipeline, tiny_expert, tiny_tokens_wan
from torch import Tensor

import genhoi
from genhoi.bases.load import base_config, base_kind, check_base, load_base, shipped_adapters
from genhoi.bases.wan import WanBase
from genhoi.bases.wan_experts import WanExpertsBase, WanTextExpertsBase, WanVACEExpertsBase
from genhoi.bases.wan_text import WanTextBase
from genhoi.bases.wan_tokens import WanTokensBase
from genhoi.models.registry import model_of
from genhoi.models.sampling import denoise, guidance_by_step, noise_levels
from genhoi.models.wan.given import WanTextModel, WanTokensModel
from genhoi.models.wan.model import WanModel
from genhoi.training.objective import Batch, reconstruction_loss

STEPS, SHIFT = 4, 5.0  # sigmas 1, .94, .83, .63: two above 0.9 and two below
SIZE = (64, 96)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of each, by name."""
    at = tmp_path_factory.mktemp("wan22")
    return {
        "image": save_tiny_pipeline(at / "image"),
        "text": save_tiny_pipeline(at / "text", "text", boundary=0.875),
        "vace": save_tiny_pipeline(at / "vace", "vace"),
        "one text": save_tiny_pipeline(at / "one", "text", experts=False),
        "tokens": save_tiny_pipeline(at / "tokens", experts=False, tokens=True),
        "flf": save_tiny_base(at / "flf", pos_embed_seq_len=34),
    }


def draw(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -------------------------------------------------------------------------------- which is which


def test_kinds_are_told_by_their_folders(folders: dict[str, Path], tmp_path: Path) -> None:
    kinds = {name: base_kind(folder) for name, folder in folders.items()}
    assert kinds == {
        "image": WanExpertsBase,
        "text": WanTextExpertsBase,
        "vace": WanVACEExpertsBase,
        "one text": WanTextBase,
        "tokens": WanTokensBase,
        "flf": WanBase,
    }
    # The published folder of TI2V says WanPipeline.
    index = json.loads((folders["tokens"] / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"_class_name": "WanPipeline"}))
    assert base_kind(tmp_path) is WanTokensBase
    assert base_kind(tmp_path / "none") is WanBase


def test_boundary_and_strides(folders: dict[str, Path]) -> None:
    boundaries = {name: base_kind(f).read_boundary(f) for name, f in folders.items()}
    assert boundaries["image"] == 0.9 and boundaries["text"] == 0.875
    assert boundaries["one text"] is boundaries["tokens"] is None
    strides = {name: base_kind(f).strides(f) for name, f in folders.items()}
    assert strides["tokens"].token == 32 and strides["image"].token == 16


def test_families_are_told_by_their_channels() -> None:
    assert type(model_of(tiny_expert("image"))) is WanModel
    assert type(model_of(tiny_expert("text"))) is WanTextModel
    model = model_of(tiny_tokens_wan())
    assert type(model) is WanTokensModel
    assert (model.sizes.latent_channels, model.sizes.strides.space) == (48, 16)


@pytest.mark.parametrize(
    ("name", "file", "changes", "match"),
    [
        ("image", "model_index.json", {"boundary_ratio": None}, "boundary_ratio None in model_i"),
        ("image", "model_index.json", {"boundary_ratio": 9}, "wanted a number between 0 and 1"),
        ("image", "transformer_2/config.json", {"num_layers": 3}, "num_layers 3 instead of 2"),
        ("tokens", "vae/config.json", {"z_dim": 16}, "has a VAE of 16 channels at 16 pixels"),
        ("tokens", "model_index.json", {"_class_name": "WanVACEPipeline"}, "timesteps by token"),
        ("image", "transformer/config.json", {"in_channels": 16}, "from 16 to 16 channels"),
    ],
)
def test_settings_that_do_not_fit(
    folders: dict[str, Path], tmp_path: Path, name: str, file: str, changes: Any, match: str
) -> None:
    base = tmp_path / "base"
    shutil.copytree(folders[name], base, ignore=shutil.ignore_patterns("*.safetensors"))
    values = json.loads((base / file).read_text())
    (base / file).write_text(json.dumps(values | changes))
    with pytest.raises(ValueError, match=match):
        base_config(base)


def test_both_transformers_are_wanted(folders: dict[str, Path], tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(folders["image"], base)
    for path in (base / "transformer_2").glob("*.safetensors"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks transformer_2/ \(weights\)"):
        check_base(base)
    with pytest.raises(ValueError, match="transformer: got one for a base of two transformers"):
        check_base(folders["image"], transformer=folders["image"] / "transformer")


def test_adapters_that_come_with_a_base(folders: dict[str, Path], tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(folders["image"], base, ignore=shutil.ignore_patterns("*.safetensors"))
    assert shipped_adapters(base) == ()
    lively_adapter(tiny_expert()).save_pretrained(base / "adapter")
    assert shipped_adapters(base) == (base / "adapter",)
    lively_adapter(tiny_expert()).save_pretrained(base / "adapter_2")
    assert shipped_adapters(base) == (base / "adapter", base / "adapter_2")


def test_one_of_two_is_loaded_alone(folders: dict[str, Path], tmp_path: Path) -> None:
    both = load_base(folders["image"])
    for expert, wanted, levels in (
        ("high", both.transformer, (0.9, 1.0)),
        ("low", both.transformer_2, (0.0, 0.9)),
    ):
        base = load_base(folders["image"], expert=expert)  # type: ignore[arg-type]
        assert base.transformer_2 is None and base.levels == levels
        mine, theirs = base.transformer.state_dict(), wanted.state_dict()
        assert all(torch.equal(x, theirs[name]) for name, x in mine.items())
    with pytest.raises(ValueError, match=r"expert: got 'high' for .*, wanted none"):
        load_base(folders["one text"], expert="high")


def test_frames_through_the_vae_of_tokens(folders: dict[str, Path]) -> None:
    """16 x 16 pixels and 48 channels; a size of whole tokens is wanted."""
    base = load_base(folders["tokens"])
    clip = torch.randint(0, 256, (5, 64, 96, 3), dtype=torch.uint8)
    latents = base.encode(clip)
    assert latents.shape == (1, 48, 2, 4, 6)
    pipe = base.pipe  # type: ignore[attr-defined]
    pixels = (clip / 127.5 - 1).permute(3, 0, 1, 2)[None]
    with torch.no_grad():
        mode = pipe.vae.encode(pixels).latent_dist.mode()
    torch.testing.assert_close(latents, (mode - 0.1) / 1.5)
    assert base.decode(latents).shape == clip.shape
    assert genhoi.encode_reference(pipe.vae, clip[0], size=(32, 64)).shape == (1, 48, 1, 2, 4)
    with pytest.raises(ValueError, match=r"size: got \(48, 64\), .* multiples of 32"):
        genhoi.encode_reference(pipe.vae, clip[0], size=(48, 64))


# --------------------------------------------------------------------- against diffusers' pipelines


def stock(folder: Path, form: Form, **arguments: Any) -> tuple[Tensor, dict[str, Any]]:
    """Latents as diffusers' pipeline makes them at our noise levels; its first call's inputs."""
    pipe = PIPELINES[form].from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    seen: list[dict[str, Any]] = []
    pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True
    )
    set_timesteps = pipe.scheduler.set_timesteps
    levels = torch.linspace(1, 0, STEPS + 1)[:-1].tolist()
    pipe.scheduler.set_timesteps = lambda steps, device: set_timesteps(sigmas=levels)
    latents: Tensor = pipe(
        prompt_embeds=draw(1, 512, 24, seed=6),
        negative_prompt_embeds=draw(1, 512, 24, seed=7),
        num_inference_steps=STEPS,
        num_frames=9,
        height=SIZE[0],
        width=SIZE[1],
        output_type="latent",
        return_dict=False,
        **arguments,
    )[0]
    return latents, seen[0]


def ours(
    base: Any,
    start: Tensor,
    condition: Tensor,
    guidance: tuple[float, float | None],
    image: Tensor | None = None,
) -> Tensor:
    sigmas = noise_levels(STEPS, SHIFT)
    return denoise(
        base.model,
        start,
        condition,
        text=draw(1, 512, 24, seed=6),
        no_text=draw(1, 512, 24, seed=7),
        image=image,
        guidance=guidance_by_step(sigmas, *guidance, base.boundary),
        sigmas=sigmas,
        after_step=lambda step, latents: None,
    )


def picture() -> Tensor:
    return torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(8))


def test_two_transformers_as_diffusers_has_them(folders: dict[str, Path]) -> None:
    """Which one runs when, and with which guidance."""
    start = draw(1, 16, 3, SIZE[0] // 8, SIZE[1] // 8)
    wanted, inputs = stock(
        folders["image"],
        "image",
        image=picture(),
        latents=start,
        guidance_scale=5.0,
        guidance_scale_2=2.0,
    )
    base = load_base(folders["image"])
    condition = inputs["hidden_states"][:, 16:]
    made = ours(base, start, condition, (5.0, 2.0))
    torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-4)
    for other in ((5.0, None), (2.0, 5.0)):
        assert (ours(base, start, condition, other) - wanted).abs().max() > 1e-2
    base.transformer_2 = None
    assert (ours(base, start, condition, (5.0, None)) - wanted).abs().max() > 1e-2


def test_two_vace_transformers_as_diffusers_has_them(folders: dict[str, Path]) -> None:
    start = draw(1, 16, 3, SIZE[0] // 8, SIZE[1] // 8)
    wanted, inputs = stock(
        folders["vace"], "vace", latents=start, guidance_scale=5.0, guidance_scale_2=2.0
    )
    base = load_base(folders["vace"])
    made = ours(base, start, inputs["control_hidden_states"], (5.0, 2.0))
    torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-4)


def nothing_given(base: Any, start: Tensor) -> Tensor:
    """A condition that gives nothing of the clip."""
    return torch.cat([torch.ones_like(start[:, :4]), torch.zeros_like(start)], dim=1)


@pytest.mark.parametrize("name", ["text", "one text"])
def test_text_to_video_as_diffusers_has_it(folders: dict[str, Path], name: str) -> None:
    start = draw(1, 16, 3, SIZE[0] // 8, SIZE[1] // 8)
    wanted, _ = stock(folders[name], "text", latents=start, guidance_scale=4.0)
    base = load_base(folders[name])
    made = ours(base, start, nothing_given(base, start), (4.0, None))
    torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-4)


def test_tokens_of_a_given_frame_as_diffusers_has_them(folders: dict[str, Path]) -> None:
    """TI2V: the first frame clean at timestep 0, all others at the noise level."""
    start = draw(1, 48, 3, SIZE[0] // 16, SIZE[1] // 16)
    wanted, inputs = stock(
        folders["tokens"], "image", image=picture(), latents=start, guidance_scale=5.0
    )
    base = load_base(folders["tokens"])
    condition = nothing_given(base, start)
    condition[:, :, :1] = 0
    condition[:, 4:, :1] = inputs["hidden_states"][:, :, :1]
    made = ours(base, start, condition, (5.0, None))
    torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-4)
    given = base.model.inputs(start, condition, torch.tensor([900.0]), start, None)
    assert torch.equal(given["timestep"], inputs["timestep"].sign() * 900)


def test_first_and_last_frame_as_diffusers_has_them(folders: dict[str, Path]) -> None:
    """FLF2V: both pictures reach the image encoder, in their order."""
    first, last = (
        torch.randint(0, 256, (*SIZE, 3), generator=torch.Generator().manual_seed(i)).byte()
        for i in range(2)
    )
    start = draw(1, 16, 3, SIZE[0] // 8, SIZE[1] // 8)
    wanted, inputs = stock(
        folders["flf"],
        "image",
        image=Image.fromarray(first.numpy()),
        last_image=Image.fromarray(last.numpy()),
        latents=start,
        guidance_scale=5.0,
    )
    base = load_base(folders["flf"])
    image = base.encode_image(first, last)
    assert image is not None
    torch.testing.assert_close(image, inputs["encoder_hidden_states_image"])
    made = ours(base, start, inputs["hidden_states"][:, 16:], (5.0, None), image)
    torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-4)
    other = ours(base, start, inputs["hidden_states"][:, 16:], (5.0, None), image.flip(0))
    assert (other - wanted).abs().max() > 1e-3
    # As a training has them: one row for each clip.
    of_clips = image.flatten(0, 1)[None].repeat(2, 1, 1)
    arguments = base.model.inputs(start, inputs["hidden_states"][:, 16:], start, start, of_clips)
    assert torch.equal(arguments["encoder_hidden_states_image"], image.repeat(2, 1, 1))


def test_the_boundary_itself_is_of_the_first_transformer() -> None:
    """As in diffusers, where `transformer` takes timesteps from the boundary on."""
    high, low = (model_of(tiny_expert("image", seed)) for seed in range(2))
    high.hand_over(low, below=900.0)
    assert high.at(900.0) is high and high.at(899.9) is low and low.at(950.0) is low
    sigmas = torch.tensor([1.0, 0.9, 0.5, 0.0])
    assert guidance_by_step(sigmas, 5.0, 2.0, 0.9) == [5.0, 5.0, 2.0]
    assert guidance_by_step(sigmas, 5.0, None, 0.9) == [5.0] * 3


# ------------------------------------------------------------------------------- what is given


def half_given(channels: int) -> Tensor:
    """A condition of the left half, of 7s; one latent pixel reaches into it in one of 4 frames."""
    condition = torch.zeros(1, 4 + channels, 2, 4, 8)
    condition[:, :4, :, :, 4:] = 1
    condition[:, 1, 1, 0, 0] = 1
    condition[:, 4:] = 7
    return condition


def test_what_is_given_to_text_to_video_has_the_noise_of_its_level() -> None:
    model = model_of(tiny_expert("text"))
    latents, noise = torch.zeros(1, 16, 2, 4, 8), draw(1, 16, 2, 4, 8)
    put = model.with_given(latents, half_given(16), noise, 0.25)
    torch.testing.assert_close(put[..., :4][:, :, 0], (0.75 * 7 + 0.25 * noise)[..., :4][:, :, 0])
    assert not put[..., 4:].any() and not put[:, :, 1, 0, 0].any() and put[:, :, 1, 1, 1].all()
    assert model.predicted(half_given(16)) is None
    by_sample = model.with_given(latents, half_given(16), noise, torch.tensor([0.25]))
    torch.testing.assert_close(by_sample, put)


def test_what_is_given_to_tokens_is_clean_in_whole_tokens() -> None:
    model = model_of(tiny_tokens_wan())
    latents = torch.zeros(1, 48, 2, 4, 8)
    put = model.with_given(latents, half_given(48), latents + 1, 0.25)
    assert (put[:, :, 0, :, :4] == 7).all() and not put[..., 4:].any()
    assert not put[:, :, 1, :2, :2].any() and (put[:, :, 1, 2:, :4] == 7).all()
    inputs = model.inputs(put, half_given(48), torch.tensor([600.0]), latents, None)
    assert inputs["timestep"].shape == (1, 2 * 2 * 4)
    assert inputs["timestep"].view(2, 2, 4).tolist() == [
        [[0, 0, 600, 600], [0, 0, 600, 600]],
        [[600, 0, 600, 600], [0, 0, 600, 600]],
    ]
    predicted = model.predicted(half_given(48))
    assert predicted is not None and predicted.sum() == 4 * (2 * 4 + 1)


@pytest.mark.parametrize("name", ["one text", "tokens"])
def test_an_adapter_on_them(folders: dict[str, Path], name: str) -> None:
    """The reference changes what is generated, and nothing that is given."""
    base = load_base(folders[name])
    channels = base.model.sizes.latent_channels
    handle = genhoi.attach(base.transformer, lively_adapter(base.transformer), preset="release")
    start, condition = draw(1, channels, 2, 4, 8), half_given(channels)
    alone = ours(base, start, condition, (1.0, None))
    handle.set_reference([reference(4, 4, channels=channels)])
    seen = ours(base, start, condition, (1.0, None))
    assert handle.reference_passes == 1
    assert (seen - alone)[..., 4:].abs().max() > 1e-3
    assert (seen[:, :, 0, :, :4] == 7).all()


def test_no_loss_where_nothing_is_predicted() -> None:
    """Of tokens that are given clean; text-to-video says a velocity for all."""
    for transformer, channels, counts in (
        (tiny_tokens_wan(), 48, False),
        (tiny_expert("text"), 16, True),
    ):
        clean, noise = draw(1, channels, 2, 4, 8), draw(1, channels, 2, 4, 8, seed=4)
        batch = Batch(
            clean=clean,
            noise=noise,
            sigmas=torch.tensor([0.5]),
            condition=half_given(channels),
            objects=clean[:, :, :1],
            object_noise=noise[:, :, :1],
            tokens=None,
            text=draw(1, 512, 24),
            image=None,
        )
        velocity = noise - clean
        velocity[:, :, 0, 0, 0] += 100
        loss = reconstruction_loss(
            model_of(transformer),
            lambda velocity=velocity, **_: (velocity,),
            None,
            batch,
            mask_weight=1.0,
        )
        assert bool(loss > 1) == counts
