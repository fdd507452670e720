"""Edits, dry runs and trainings on Wan 2.2 and text-to-video pipelines, tiny and random."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from support.command_lines import command_line
from support.tiny_base import save_tiny_base
from support.tiny_training import Noise, fresh_accelerator, small_config
from support.tiny_wan import lively_adapter
from support.tiny_wan22 import save_tiny_pipeline, tiny_expert, tiny_tokens_wan
from torch import Tensor

import genhoi
from genhoi import Clip, GenHOIAdapter, GenHOIPipeline, media
from genhoi.bases.load import load_base
from genhoi.bases.lora import parse_lora
from genhoi.cli.group import main
from genhoi.data.encoded import encode_dataset
from genhoi.editing.estimate import Estimate, estimate_edit
from genhoi.models.experts import ExpertsAttachment
from genhoi.training.trainer import Trainer

F, H, W = 9, 32, 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bases, an adapter for each form, and one whose weights differ."""
    folder = tmp_path_factory.mktemp("wan22")
    save_tiny_pipeline(folder / "image")
    save_tiny_pipeline(folder / "vace", "vace")
    save_tiny_pipeline(folder / "text", "text", experts=False)
    save_tiny_pipeline(folder / "tokens", experts=False, tokens=True)
    save_tiny_base(folder / "flf", pos_embed_seq_len=34)
    adapter = lively_adapter(tiny_expert())
    adapter.save_pretrained(folder / "image-adapter")
    with torch.no_grad():
        for weight in adapter.parameters():
            weight.neg_()
    adapter.save_pretrained(folder / "other-adapter")
    lively_adapter(tiny_expert("vace")).save_pretrained(folder / "vace-adapter")
    lively_adapter(tiny_expert("text")).save_pretrained(folder / "text-adapter")
    lively_adapter(tiny_tokens_wan()).save_pretrained(folder / "tokens-adapter")
    return folder


@pytest.fixture
def files(tmp_path: Path) -> Path:
    draw = torch.Generator().manual_seed(0)
    frames = torch.randint(60, 200, (H, W, 3), generator=draw, dtype=torch.uint8)
    media.write_clip(tmp_path / "video.mp4", Clip(frames.repeat(F, 1, 1, 1), 12))
    mask = torch.zeros(F, H, W, dtype=torch.bool)
    mask[:, :, :32] = True
    media.write_mask(tmp_path / "mask.mp4", mask, fps=12)
    media.write_image(tmp_path / "object.png", frames[:16, 4:20])
    return tmp_path


def edit(files: Path, base: Path, *more: str, out: str = "out", **options: Any) -> Result:
    command = command_line(
        "edit",
        video=files / "video.mp4",
        mask=files / "mask.mp4",
        object=files / "object.png",
        base=base,
        out=files / out,
        **options,
    )
    return CliRunner().invoke(main, [*command, *more])


def record(files: Path, out: str = "out") -> dict[str, Any]:
    values: dict[str, Any] = json.loads((files / out / "edit.json").read_text())
    return values


def frames_of(files: Path, out: str = "out") -> str:
    """A digest of what was made; the film itself is compressed, not always alike."""
    return str(record(files, out)["edited_frames_sha256"])


# --------------------------------------------------------------------------------------- the edit


@pytest.mark.parametrize("form", ["image", "vace", "text", "tokens"])
def test_an_edit_end_to_end(files: Path, folder: Path, form: str) -> None:
    """Two windows, a prompt, and what has to be known before."""
    more = ["--window", "5", "--prompt", "a hand", "--no-keep-background"]
    options = {"steps": 4, "guidance": 2, "adapter": folder / f"{form}-adapter"}
    result = edit(files, folder / form, *more, **options)
    assert result.exit_code == 0, result.output
    assert "GenHOI has no trained weights for" in result.output
    values = record(files)
    assert values["windows"] == [[0, 5], [4, 9]] and values["adapter"]["trained"]
    assert media.read_clip(files / "out" / "edited.mp4").frames.shape == (F, H, W, 3)
    assert values["reference_passes"] == {"image": 2, "vace": 0}.get(form, 1)


def clip() -> Clip:
    return Clip(torch.full((5, H, W, 3), 90, dtype=torch.uint8))


def box() -> Tensor:
    mask = torch.zeros(5, H, W, dtype=torch.bool)
    mask[:, :, :32] = True
    return mask


MUG = torch.full((16, 16, 3), 200, dtype=torch.uint8)


def pipeline(folder: Path, form: str, **options: Any) -> GenHOIPipeline:
    adapter = GenHOIAdapter.from_pretrained(folder / f"{form}-adapter")
    return GenHOIPipeline.from_pretrained(folder / form, adapter=adapter, **options)


@pytest.mark.filterwarnings("ignore::genhoi.EditWarning")
def test_an_adapter_for_each_transformer(folder: Path, tmp_path: Path) -> None:
    """One given serves both; two are told apart; those of the folder come by themselves."""
    own = tmp_path / "base"
    shutil.copytree(folder / "image", own)
    one, other = folder / "image-adapter", folder / "other-adapter"
    shutil.copytree(one, own / "adapter")
    shutil.copytree(other, own / "adapter_2")
    ways: dict[str, Any] = {"one": one, "both": [one, one], "two": [one, other], "own": None}
    made: dict[str, Tensor] = {}
    for name, adapter in ways.items():
        with_it = GenHOIPipeline.from_pretrained(own, adapter=adapter)
        assert with_it.adapter_trained
        made[name] = with_it(
            clip(), box(), MUG, steps=4, guidance=1.0, keep_background=False, progress_bar=False
        ).frames
    assert torch.equal(made["one"], made["both"]) and torch.equal(made["two"], made["own"])
    assert not torch.equal(made["one"], made["two"])
    with pytest.raises(ValueError, match="adapter: got 3, wanted one or two: the base has two"):
        GenHOIPipeline.from_pretrained(own, adapter=[one] * 3)
    with pytest.raises(ValueError, match="adapter: got 2, wanted one: the base has one transf"):
        GenHOIPipeline.from_pretrained(folder / "text", adapter=[one] * 2)


def test_two_adapters_by_the_command(files: Path, folder: Path) -> None:
    names = [str(folder / "image-adapter"), str(folder / "other-adapter")]
    more = [word for name in names for word in ("--adapter", name)]
    result = edit(files, folder / "image", *more, steps=1, guidance=1, frames=5)
    assert result.exit_code == 0, result.output
    values = record(files)
    assert values["adapter"] == {"names": names, "trained": True}
    assert f"--adapter {names[0]} --adapter {names[1]}" in values["repeat"]
    result = edit(files, folder / "image", *more, *more[:2], out="three")
    assert result.exit_code == 1 and "--adapter: got 3, wanted one or two" in result.output


@pytest.mark.filterwarnings("ignore::genhoi.EditWarning")
def test_both_transformers_see_the_object_and_either_guidance_counts(folder: Path) -> None:
    made = pipeline(folder, "image")
    assert isinstance(made.attachment, ExpertsAttachment)
    calls: list[str] = []
    for name, transformer in zip(("high", "low"), made.base.transformers, strict=True):
        transformer.register_forward_pre_hook(lambda *_, name=name: calls.append(name))

    def run(**options: Any) -> Tensor:
        seen: list[Any] = []
        options |= {"prompt": "a hand", "steps": 4, "progress_bar": False}
        made(clip(), box(), MUG, callback=seen.append, **options)
        assert seen[-1].attention is None or seen[-1].attention.isfinite().any()
        latents: Tensor = seen[-1].latents
        return latents

    both = run(guidance=2.0, guidance_2=3.0, attention_layer=1)
    assert calls == ["high"] * 4 + ["low"] * 4
    calls.clear()
    assert not torch.equal(both, run(guidance=2.0))
    assert not torch.equal(both, run(guidance=1.0, guidance_2=3.0))
    assert calls == ["high"] * 4 + ["low"] * 4 + ["high"] * 2 + ["low"] * 4
    high, low = made.attachment.attachments
    assert high.reference_passes == low.reference_passes == 3
    for one in (high, low):
        one.set_reference(None)
        assert one.reference_passes == 3
    made.attachment.detach()
    for transformer in made.base.transformers:
        assert {type(x) for x in transformer.attn_processors.values()} == {WanAttnProcessor}


@pytest.mark.filterwarnings("ignore::genhoi.EditWarning")
def test_unfinished_windows_are_those_of_both_transformers(folder: Path, tmp_path: Path) -> None:
    options = {"steps": 2, "guidance": 1.0, "progress_bar": False, "parts": tmp_path / "parts"}
    pipeline(folder, "image")(clip(), box(), MUG, **options)  # type: ignore[arg-type]
    other = pipeline(folder, "image")
    with torch.no_grad():
        other.base.transformer_2.proj_out.weight.add_(1)
    with pytest.raises(FileExistsError, match="unfinished edit with other inputs"):
        other(clip(), box(), MUG, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("offload", ["group"])
def test_offloading_runs_with_two(folder: Path, offload: Any) -> None:
    made = pipeline(folder, "image")
    made.base.place(offload)
    with pytest.warns(genhoi.EditWarning):
        edited = made(clip(), box(), MUG, steps=2, progress_bar=False)
    assert edited.num_frames == 5


@pytest.mark.parametrize(
    ("form", "options", "message"),
    [
        ("text", {"guidance_2": 3}, "--guidance-2: got 3.0, wanted none: this base has one transf"),
        ("tokens", {"size": "48x32"}, "size: got (32, 48), wanted (height, width), both positive"),
        ("image", {"transformer": "."}, "--transformer: got one for a base of two transformers"),
        ("image", {"lora": "none.safetensors"}, "--lora: there is no file none.safetensors"),
    ],
)
def test_what_is_refused_before_anything_is_loaded(
    files: Path, folder: Path, form: str, options: Any, message: str
) -> None:
    result = edit(files, folder / form, adapter=folder / f"{form}-adapter", **options)
    assert result.exit_code == 1 and message in result.output, result.output


# ------------------------------------------------------------------------------------- dry runs


def estimate(base: Path, **changes: Any) -> Estimate:
    settings: dict[str, Any] = {
        "frames": 9,
        "size": (32, 64),
        "objects": 1,
        "steps": 4,
        "guidance": 1.0,
        "window": 9,
        "dtype": torch.bfloat16,
    }
    return estimate_edit(base, **(settings | changes))


def test_an_estimate_counts_both_transformers(folder: Path) -> None:
    two = estimate(folder / "image")
    assert two.steps == (2, 2)
    assert two.weight_bytes["transformer"] == two.weight_bytes["transformer_2"]
    assert two.weight_bytes["adapter"] == two.weight_bytes["adapter_2"]
    none, model, group = two.memory
    one = two.weight_bytes["transformer"] + two.weight_bytes["adapter"]
    assert {"denoising", "denoising, low noise"} <= set(none.phases)
    # The second comes as the first leaves; what is kept of the object is kept by both.
    assert none.phases["denoising"] - model.phases["denoising"] >= one
    kept = two.cache_bytes // 2
    assert none.phases["denoising, low noise"] - none.phases["denoising"] == kept
    assert group.phases["denoising"] < model.phases["denoising"]
    guided = estimate(folder / "image", guidance=2.0, guidance_2=1.0)
    assert guided.denoising.products == pytest.approx(1.5 * two.denoising.products)
    all_low = estimate(folder / "image", shift=0.01)
    assert all_low.steps == (1, 3), "the first step has only noise"


def test_an_estimate_of_tokens_of_32_pixels(folder: Path) -> None:
    needs = estimate(folder / "tokens", size=(64, 96))
    assert (needs.grid, needs.tokens, needs.reference_tokens) == ((3, 2, 3), 18, 6)
    assert needs.steps == (4,) and "transformer_2" not in needs.weight_bytes


def test_a_dry_run_with_configurations_alone(files: Path, folder: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(folder / "image", base, ignore=shutil.ignore_patterns("*.safetensors"))
    result = edit(files, base, "--dry-run", steps=4, device="h100", window=5)
    assert result.exit_code == 0, result.output
    output = " ".join(result.output.replace("│", " ").split())
    assert "does it fit? yes" in output and "denoising, low noise" in output
    assert "4 steps x 2 for guidance (2 of the first transformer, 2 of the second)" in output


# ------------------------------------------------------------------------------------------- LoRA


def save_lora(path: Path, seed: int = 0, name: str = "diffusion_model.blocks.{}.self_attn") -> Path:
    """Low-rank weights for every block's q, k, v, o, named as lightx2v's."""
    from safetensors.torch import save_file

    draw = torch.Generator().manual_seed(seed)
    weights = {}
    for block in range(2):
        for layer in "qkvo":
            at = f"{name.format(block)}.{layer}"
            weights[f"{at}.lora_down.weight"] = torch.randn(4, 64, generator=draw)
            weights[f"{at}.lora_up.weight"] = 0.3 * torch.randn(64, 4, generator=draw)
    save_file(weights, path)
    return path


@pytest.mark.filterwarnings("ignore::genhoi.EditWarning")
def test_loras_of_two_transformers(folder: Path, tmp_path: Path) -> None:
    """For both, or one each, with factors."""
    lora, other = save_lora(tmp_path / "a.safetensors"), save_lora(tmp_path / "b.safetensors", 1)
    ways = {
        "none": [],
        "both": [f"{lora}"],
        "twice": [f"high={lora}", f"low={lora}:1"],
        "apart": [f"high={lora}", f"low={other}"],
        "summed": [f"{lora}:0.5", f"{lora}:0.5"],
        "half": [f"{lora}:0.5"],
    }
    made: dict[str, Tensor] = {}
    for name, texts in ways.items():
        loras = [parse_lora(text) for text in texts]
        seen: list[Any] = []
        of_name = pipeline(folder, "image", loras=loras)
        of_name(clip(), box(), MUG, steps=4, guidance=1.0, callback=seen.append, progress_bar=False)
        assert of_name.base.about.count("LoRA") == bool(texts)
        made[name] = seen[-1].latents
    assert torch.equal(made["both"], made["twice"])
    torch.testing.assert_close(made["both"], made["summed"], rtol=1e-4, atol=1e-4)
    for name in ("none", "apart", "half"):
        assert (made["both"] - made[name]).abs().max() > 1e-2, name


def test_few_steps(files: Path, folder: Path) -> None:
    """As the command has them: what is said wins over them, and the record repeats it."""
    lora = save_lora(files / "a.safetensors")
    more = ["--few-steps", "--shift", "6", "--lora", f"high={lora}:0.9", "--lora", f"low={lora}"]
    result = edit(files, folder / "image", *more, adapter=folder / "image-adapter", frames=5)
    assert result.exit_code == 0, result.output
    values = record(files)
    settings = values["settings"]
    assert (settings["steps"], settings["guidance"], settings["shift"]) == (4, 1, 6)
    assert values["base"]["loras"] == [f"high={lora}:0.9", f"low={lora}"]
    assert f"--lora high={lora}:0.9 --lora low={lora}" in values["repeat"]
    dry = edit(files, folder / "image", *more, "--dry-run", "--json", out="dry", device="h100")
    assert dry.exit_code == 0, dry.output
    assert json.loads(dry.stdout)["estimate"]["weight_bytes"]["lora"] == 2 * lora.stat().st_size


def test_odd_loras(files: Path, folder: Path) -> None:
    lora = save_lora(files / "a.safetensors")
    misfit = save_lora(files / "c.safetensors", name="diffusion_model.blocks.1{}.self_attn")
    (files / "d.safetensors").write_bytes(b"none")
    text = {"adapter": folder / "text-adapter"}
    for base, more, message in (
        (folder / "text", f"high={lora}", "wanted it without high=: the base has one transf"),
        ("mosaic-untrained", str(lora), "wanted none: this base takes no LoRA"),
        (folder / "text", f"{lora}:nan", "lora: got weight nan, wanted a finite number"),
        (folder / "text", str(misfit), "c.safetensors does not fit this base: Target modules"),
        (folder / "text", str(files / "d.safetensors"), "d.safetensors does not fit this base"),
    ):
        adapter = {} if base == "mosaic-untrained" else text
        result = edit(files, base, "--lora", more, **adapter)  # type: ignore[arg-type]
        assert result.exit_code == 1 and message in result.output, result.output


# --------------------------------------------------------------------------------------- variants


@pytest.mark.parametrize("shard", [None, "20KB"])
def test_weights_of_a_variant(files: Path, folder: Path, tmp_path: Path, shard: str | None) -> None:
    saving = {} if shard is None else {"max_shard_size": shard}
    base = save_tiny_pipeline(tmp_path / "base", variant="fp16", **saving)
    assert (base / "transformer_2").glob("*.fp16*.safetensors")
    loaded, wanted = load_base(base), load_base(folder / "image")
    assert "weights of variant fp16" in loaded.about
    for mine, theirs in zip(loaded.transformers, wanted.transformers, strict=True):
        assert torch.equal(mine.proj_out.weight, theirs.proj_out.weight)
    if shard is not None:
        next((base / "transformer_2").glob("*.safetensors")).unlink()
        with pytest.raises(FileNotFoundError, match="lacks transformer_2/diffusion_pytorch_model"):
            load_base(base)


def test_several_variants_and_none_without(tmp_path: Path) -> None:
    base = save_tiny_pipeline(tmp_path / "base", variant="fp16")
    save_tiny_pipeline(tmp_path / "bf16", variant="bf16")
    shutil.copytree(tmp_path / "bf16" / "transformer", base / "transformer", dirs_exist_ok=True)
    assert "fp16" in load_base(base).about, "the one that all have"
    shutil.copytree(tmp_path / "bf16", base, dirs_exist_ok=True)
    with pytest.raises(ValueError, match="got weights in several variants and none without"):
        load_base(base)
    shutil.copytree(save_tiny_pipeline(tmp_path / "plain"), base, dirs_exist_ok=True)
    assert "weights of variant" not in load_base(base).about


# --------------------------------------------------------------------------------------- training


@pytest.mark.parametrize(
    ("form", "expert"),
    [("image", "high"), ("vace", "low"), ("text", None), ("tokens", None), ("flf", None)],
)
def test_a_training(folder: Path, tmp_path: Path, form: str, expert: Any) -> None:
    """One transformer at its noise levels; its samples, and what it leaves."""
    base = load_base(folder / form, expert=expert)
    clips = encode_dataset(base, Noise(2), tmp_path / "latents", given=["first"])
    config = small_config(
        base=str(folder / form),
        expert=expert,
        given={"first": 1.0},
        reference_dropout=None,
        steps=8,
        sample_every=8,
        samples=1,
    )
    trainer = Trainer(
        config, tmp_path / "run", clips, base=base, accelerator=fresh_accelerator(config)
    )
    from genhoi.training.objective import make_batch

    batch = make_batch(base.model, clips, range(32), trainer.choices())
    low, high = {"high": (0.9, 1.0), "low": (0.0, 0.9)}.get(expert, (0.0, 1.0))
    assert ((low <= batch.sigmas) & (batch.sigmas <= high)).all()
    assert float(batch.sigmas.max() - batch.sigmas.min()) > 0.5 * (high - low)
    losses: list[float] = []
    trainer.run(lambda progress: losses.append(progress.loss))
    assert all(0 < loss < 1e3 for loss in losses)
    assert not GenHOIAdapter.from_pretrained(tmp_path / "run" / "adapter").is_fresh
    assert (tmp_path / "run" / "samples").is_dir()


@pytest.mark.parametrize(
    ("form", "flags", "message"),
    [
        ("image", [], "--expert: got none, wanted high or low: the base has two transformers"),
        ("text", ["--expert", "low"], "--expert: got 'low', wanted none: the base has one"),
        ("image", ["--expert", "low", "--video-rank", "2"], "--video-rank: got 2, wanted 0 for a"),
        ("tokens", ["--height", "48", "--width", "64"], "wanted multiples of 32 for this base"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    folder: Path, tmp_path: Path, form: str, flags: list[str], message: str
) -> None:
    command = command_line("train", base=folder / form, out=tmp_path / "run")
    result = CliRunner().invoke(main, [*command, *flags])
    assert result.exit_code == 1
    assert message in result.output and not (tmp_path / "run").exists(), result.output


def test_a_dry_run_of_a_training(folder: Path, tmp_path: Path) -> None:
    command = command_line("train", base=folder / "image", out=tmp_path / "run", expert="low")
    result = CliRunner().invoke(main, [*command, "--dry-run", "--device", "h100-80gb"])
    assert result.exit_code == 0, result.output
    assert "does it fit?" in result.output
