"""The tiny model as a plain pipeline of diffusers, with random weights; genhoi.json."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from diffusers import AutoencoderKLWan, WanImageToVideoPipeline
from PIL import Image
from safetensors.torch import load_file
from support.tiny_base import save_tiny_base
from support.tiny_wan import lively_adapter
from torch import Tensor

from benchmarks.tiny_model.pipeline import SETTINGS, main, put_together, random_pipeline
from genhoi import Clip, GenHOIPipeline
from genhoi.bases.about import EditDefaults, TrainedOn, read_settings
from genhoi.bases.load import base_kind, base_settings, check_base, load_base, shipped_adapters
from genhoi.bases.mosaic import MosaicBase
from genhoi.bases.wan import WanBase
from genhoi.bases.wan_condition import edit_condition
from genhoi.editing.estimate import estimate_edit

SMALL = {"num_layers": 2, "ffn_dim": 64}


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("untrained") / "base"
    random_pipeline(folder, seed=0, transformer=SMALL)
    return folder


@pytest.fixture(scope="module")
def whole(untrained: Path) -> Path:
    """The same weights and an adapter, put together as trained ones are."""
    parts = untrained.parent
    lively_adapter(load_base(untrained).transformer).save_pretrained(parts / "adapter")
    put_together(
        vae=untrained / "vae",
        transformer=untrained / "transformer",
        adapter=parts / "adapter",
        out=parts / "whole",
    )
    return parts / "whole"


def clip(frames: int = 5) -> Clip:
    draw = torch.Generator().manual_seed(1)
    shape = (frames, 32, 48, 3)
    return Clip(torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw), 12)


def box(frames: int = 5) -> Tensor:
    mask = torch.zeros(frames, 32, 48, dtype=torch.bool)
    mask[:, 8:24, 8:32] = True
    return mask


PICTURE = torch.full((20, 16, 3), 200, dtype=torch.uint8)
FAST: dict[str, Any] = {"steps": 2, "crop": "none", "progress_bar": False}
pytestmark = pytest.mark.filterwarnings("ignore::genhoi.EditWarning")


# ---------------------------------------------------------------------------- what it is made of


def test_diffusers_runs_it(whole: Path) -> None:
    pipe = WanImageToVideoPipeline.from_pretrained(whole)

    def run(**text: Any) -> Any:
        return pipe(
            image=Image.new("RGB", (48, 32)),
            height=32,
            width=48,
            num_frames=5,
            num_inference_steps=1,
            guidance_scale=1.0,
            output_type="np",
            generator=torch.Generator().manual_seed(0),
            **text,
        ).frames

    made = run(prompt="a hand holds a mug")
    assert made.shape == (1, 5, 32, 48, 3) and pipe.scheduler.config.flow_shift == 3.0
    # One row of zeros, as genhoi gives it, is no other text.
    zeros = torch.zeros(1, 1, 8)
    assert abs(made - run(prompt_embeds=zeros)).max() < 1e-3


def test_latents_have_the_shapes_of_wan(whole: Path) -> None:
    vae = AutoencoderKLWan.from_pretrained(whole / "vae")
    frames = torch.zeros(9, 128, 128, 3, dtype=torch.uint8)
    mask = torch.ones(9, 128, 128, dtype=torch.bool)
    with torch.no_grad():
        assert edit_condition(vae, frames, mask).shape == (1, 20, 3, 16, 16)


def test_its_files(untrained: Path, whole: Path) -> None:
    assert load_base(whole).pipe.text_encoder is None
    for part in ("vae", "transformer"):
        config = json.loads((whole / part / "config.json").read_text())
        assert "_name_or_path" not in config
    for path in (x for x in whole.rglob("*") if x.is_file()):
        assert path.stat().st_mode & 0o044, path
    weights = load_file(whole / "vae" / "diffusion_pytorch_model.safetensors")
    assert {x.dtype for x in weights.values()} == {torch.float16}
    weights = load_file(whole / "transformer" / "diffusion_pytorch_model.safetensors")
    assert weights["blocks.0.attn1.to_q.weight"].dtype == torch.bfloat16
    given = load_file(untrained / "transformer" / "diffusion_pytorch_model.safetensors")
    assert weights.keys() == given.keys()
    assert all(torch.allclose(weights[n].float(), x, rtol=1e-2) for n, x in given.items())


def test_the_command(untrained: Path, whole: Path, tmp_path: Path) -> None:
    def run(*more: str) -> Any:
        parts = ("--vae", f"{untrained / 'vae'}", "--transformer", f"{untrained / 'transformer'}")
        return CliRunner().invoke(main, [*parts, "--out", str(tmp_path / "out"), *more])

    assert run("--untrained").exit_code == 0
    assert not base_settings(tmp_path / "out").trained
    again = run()
    assert again.exit_code == 1 and "exists" in again.output
    no_transformer = {
        "--vae": untrained / "vae",
        "--transformer": tmp_path,
        "--adapter": whole / "adapter",
        "--out": tmp_path / "b",
    }
    other = CliRunner().invoke(main, [str(x) for pair in no_transformer.items() for x in pair])
    assert other.exit_code == 1 and not (tmp_path / "b").exists()


# ------------------------------------------------------------------------------------- as a base


def test_it_is_a_wan_base_as_its_folder_says(untrained: Path, whole: Path) -> None:
    check_base(whole)
    assert base_kind(whole) is WanBase and base_settings(whole) == SETTINGS
    assert shipped_adapters(whole) == (whole / "adapter",) and not shipped_adapters(untrained)
    base = load_base(whole)
    assert base.trained and SETTINGS.about in base.about and base.settings == SETTINGS
    assert not load_base(untrained).trained and "UNTRAINED" in load_base(untrained).about
    assert base.encode_text("").shape == (1, 1, 8) and not base.encode_text("").any()
    with pytest.raises(ValueError, match="prompt: got 'a cup', wanted none"):
        base.encode_text("a cup")


def test_it_edits(whole: Path) -> None:
    pipeline = GenHOIPipeline.from_pretrained(whole)
    assert pipeline.adapter_trained
    edited = pipeline(clip(), box(), PICTURE, **FAST)
    assert edited.frames.shape == (5, 32, 48, 3)
    assert torch.equal(edited.frames[:, -1, -1], clip().frames[:, -1, -1]), "the background is kept"
    other = pipeline(clip(), box(), 255 - PICTURE, **FAST)
    assert not torch.equal(edited.frames, other.frames), "the picture counts"
    with pytest.raises(ValueError, match=r"guidance: got 5\.0, wanted 1: this base takes no text"):
        pipeline(clip(), box(), PICTURE, **FAST, guidance=5.0)


def test_a_fresh_adapter_is_for_random_weights(
    untrained: Path, whole: Path, tmp_path: Path
) -> None:
    assert not GenHOIPipeline.from_pretrained(untrained).adapter_trained
    put_together(
        vae=whole / "vae", transformer=whole / "transformer", adapter=None, out=tmp_path / "bare"
    )
    with pytest.raises(ValueError, match="fresh"):
        GenHOIPipeline.from_pretrained(tmp_path / "bare")


def test_its_needs_count_no_text(whole: Path) -> None:
    needs = base_kind(whole).needs(whole, dtype=torch.float32, frames=5, size=(32, 48))
    assert [phase.name for phase in needs.phases] == [
        "encoding frames",
        "denoising",
        "decoding frames",
    ]
    assert set(needs.weight_bytes) == {"vae"} and not needs.assumed
    estimate = estimate_edit(
        whole,
        frames=9,
        size=(32, 48),
        objects=1,
        steps=2,
        guidance=1.0,
        window=5,
        dtype=torch.float32,
    )
    assert len(estimate.windows) == 2


# ----------------------------------------------------------------------------------- genhoi.json


def write(folder: Path, values: Any) -> Path:
    folder.mkdir(exist_ok=True)
    text = values if isinstance(values, str) else json.dumps(values)
    (folder / "genhoi.json").write_text(text)
    return folder


def test_what_a_folder_leaves_out_is_as_its_kind_says(tmp_path: Path) -> None:
    own = WanBase.settings
    assert read_settings(tmp_path, own) is own
    values = {"defaults": {"steps": 7, "size": [64, 96], "shift": 2}, "caution": "Careful."}
    changed = read_settings(write(tmp_path, values), own)
    assert changed == replace(
        own, defaults=EditDefaults(steps=7, size=(64, 96), shift=2.0), caution="Careful."
    )
    assert isinstance(changed.defaults.shift, float)
    trained = {"sizes": [[64, 96], [96, 64]], "frames": 17, "mask_shares": [0, 1]}
    changed = read_settings(write(tmp_path, {"trained_on": trained}), own)
    assert changed.trained_on == TrainedOn(((64, 96), (96, 64)), 17, (0.0, 1.0))


def test_every_base_in_a_folder_has_it(tmp_path: Path) -> None:
    MosaicBase().save_pretrained(tmp_path / "mosaic", about="a test")
    for folder in (tmp_path / "mosaic", save_tiny_base(tmp_path / "wan")):
        own = base_settings(folder)
        write(folder, {"defaults": {"steps": 3}})
        assert base_settings(folder) == replace(own, defaults=replace(own.defaults, steps=3))
        assert load_base(folder).settings.defaults.steps == 3


@pytest.mark.parametrize(
    "values, wanted",
    [
        ("{", "is not JSON"),
        ([1], r"got \[1\], wanted settings by name"),
        ({"step": 7}, r"got unknown step, wanted some of \['defaults', "),
        ({"defaults": {"step": 7}}, "defaults: got unknown step, wanted some of"),
        ({"defaults": 7}, "defaults: got 7, wanted settings by name"),
        ({"defaults": {"steps": 7.5}}, r"defaults\.steps: got 7\.5, wanted an integer"),
        ({"defaults": {"steps": True}}, r"defaults\.steps: got True, wanted an integer"),
        ({"defaults": {"steps": 0}}, r"defaults\.steps: got 0, wanted at least 1"),
        ({"defaults": {"shift": "3"}}, r"defaults\.shift: got '3', wanted a number"),
        ({"defaults": {"shift": 0}}, r"defaults\.shift: got 0\.0, wanted a positive"),
        (
            {"defaults": {"guidance_2": []}},
            r"defaults\.guidance_2: got \[\], wanted a number or null",
        ),
        ({"defaults": {"window": 48}}, r"defaults\.window: got 48, wanted 1 \+ 4 n"),
        ({"defaults": {"size": [64]}}, r"defaults\.size: got \[64\], wanted \[an integer, an int"),
        (
            {"defaults": {"size": [64, 90]}},
            r"defaults\.size: got \(64, 90\), wanted multiples of 16",
        ),
        ({"defaults": {"mask_rule": "some"}}, r"defaults\.mask_rule: got 'some', wanted one of"),
        ({"trained_on": {"sizes": []}}, r"trained_on\.sizes: got \[\], wanted a list, each \[an "),
        ({"trained_on": {"frames": 0}}, r"trained_on\.frames: got 0, wanted 1 \+ 4 n"),
        (
            {"trained_on": {"mask_shares": [0.5, 0.1]}},
            r"trained_on\.mask_shares: got \(0\.5, 0\.1\)",
        ),
        ({"caution": None}, "caution: got None, wanted a text"),
        ({"takes_text": "no"}, "takes_text: got 'no', wanted true or false"),
    ],
)
def test_refusals_name_the_file(tmp_path: Path, values: Any, wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted) as raised:
        read_settings(write(tmp_path, values), WanBase.settings)
    assert str(tmp_path / "genhoi.json") in str(raised.value)


def test_a_refusal_comes_before_weights_are_loaded(untrained: Path, tmp_path: Path) -> None:
    for path in untrained.iterdir():
        if path.name not in ("genhoi.json", "text_encoder", "tokenizer"):
            (tmp_path / path.name).symlink_to(path)
    write(tmp_path, {"takes_text": 1})
    for refused in (check_base, base_settings, load_base, GenHOIPipeline.from_pretrained):
        with pytest.raises(ValueError, match="takes_text: got 1"):
            refused(tmp_path)  # type: ignore[operator]
    write(tmp_path, {"trained": False})
    with pytest.raises(FileNotFoundError, match=r"lacks text_encoder/ \(weights\), tokenizer/"):
        check_base(tmp_path)
