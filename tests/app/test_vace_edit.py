"""Edits and trainings on a Wan VACE pipeline, tiny and random."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from support.command_lines import command_line
from support.tiny_base import save_tiny_base
from support.tiny_training import Noise, fresh_accelerator, small_config
from support.tiny_vace import save_tiny_vace_base, tiny_vace
from support.tiny_wan import lively_adapter
from torch import Tensor

import genhoi
from genhoi import Clip, media
from genhoi.bases.load import base_kind, load_base
from genhoi.bases.wan_vace import WanVACEBase
from genhoi.cli.group import main
from genhoi.conditioning.condition import GREY
from genhoi.data.encoded import encode_dataset
from genhoi.training.config import TrainConfig
from genhoi.training.trainer import Trainer

F, H, W = 9, 32, 48


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and an adapter whose every weight matters."""
    folder = tmp_path_factory.mktemp("vace")
    save_tiny_vace_base(folder / "base")
    lively_adapter(tiny_vace()).save_pretrained(folder / "adapter")
    return folder


# ------------------------------------------------------------------------------------ the context


def spy(seen: list[Tensor]) -> Any:
    def encode(frames: Tensor) -> Tensor:
        seen.append(frames)
        count, height, width, _ = frames.shape
        return torch.full((1, 16, 1 + (count - 1) // 4, height // 8, width // 8), float(len(seen)))

    return encode


def test_what_a_half_leaves_out_is_grey_before_the_codec() -> None:
    frames = torch.full((5, 16, 32, 3), 200, dtype=torch.uint8)
    mask = torch.zeros(5, 16, 32, dtype=torch.bool)
    mask[:, :, 16:] = True
    seen: list[Tensor] = []
    mug = torch.full((1, 16, 1, 2, 4), 7.0)
    context = genhoi.vace_context(frames, mask, spy(seen), references=[mug, mug + 1])
    value = 200 / 127.5 - 1
    inactive, reactive = seen
    assert float(inactive[:, :, :16].min()) == pytest.approx(value)
    assert not inactive[:, :, 16:].any() and not reactive[:, :, :16].any()
    assert float(reactive[:, :, 16:].min()) == pytest.approx(value)
    assert context.shape == (1, 96, 4, 2, 4)
    assert (context[0, :16, :2, 0, 0] == torch.tensor([7.0, 8.0])).all(), "references in order"
    assert not context[:, 16:, :2].any()
    assert (context[:, :16, 2:] == 1).all() and (context[:, 16:32, 2:] == 2).all()
    assert not context[:, 32:, 2:, :, :2].any() and (context[:, 32:, 2:, :, 2:] == 1).all()


def test_mask_channels_are_the_pixels_of_a_cell_row_by_row_and_of_the_middle_frame() -> None:
    mask = torch.zeros(9, 16, 16, dtype=torch.bool)
    mask[3, 8 + 2, 5] = True  # of pixel frames 1 to 4 (latent frame 1) the one taken is 4
    mask[4, 8 + 2, 5] = True
    mask[0] = mask[8] = True  # never taken
    frames = torch.zeros(9, 16, 16, 3)
    context = genhoi.vace_context(frames, mask, spy([]))
    taken = [int((i + 0.5) * 9 / 3) for i in range(3)]
    assert taken == [1, 4, 7]
    assert context[0, 32:].nonzero().tolist() == [[2 * 8 + 5, 1, 1, 0]]


def test_without_a_mask_everything_is_generated() -> None:
    context = genhoi.vace_context(torch.zeros(1, 16, 16, 3), None, spy([]))
    assert (context[:, 32:] == 1).all()


@pytest.mark.parametrize(
    ("frames", "mask", "kind", "message"),
    [
        (
            torch.zeros(4, 16, 16, 3),
            None,
            ValueError,
            r"frames: got shape \(4, 16, 16, 3\), wanted",
        ),
        (torch.zeros(5, 20, 16, 3), None, ValueError, "with H and W multiples of 16"),
        (torch.zeros(5, 16, 16, 3, dtype=torch.int32), None, TypeError, "frames: got torch.int32"),
        (torch.full((5, 16, 16, 3), 2.0), None, ValueError, "frames: got values from 2 to 2"),
        (
            torch.zeros(5, 16, 16, 3),
            torch.zeros(5, 16, 16, dtype=torch.uint8),
            TypeError,
            "mask: g",
        ),
        (torch.zeros(5, 16, 16, 3), torch.zeros(1, 16, 16), ValueError, r"mask: got shape \(1, 16"),
    ],
)
def test_context_of_odd_inputs(frames: Tensor, mask: Any, kind: Any, message: str) -> None:
    with pytest.raises(kind, match=message):
        genhoi.vace_context(frames, mask, spy([]))


def test_references_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"references: got a latent of shape \(1, 16, 1, 4, 4\)"):
        genhoi.vace_context(
            torch.zeros(1, 16, 16, 3), None, spy([]), references=[torch.zeros(1, 16, 1, 4, 4)]
        )


def test_what_was_there_is_painted_over_and_given_frames_are_seen(folder: Path) -> None:
    """The model sees nothing of the masked pixels, and all of a given first or last frame."""
    base = load_base(folder / "base")
    seen: list[Tensor] = []
    frames = torch.randint(0, 100, (5, H, W, 3), dtype=torch.uint8)
    mask = torch.zeros(5, H, W, dtype=torch.bool)
    mask[:, :16, :16] = True
    finished = torch.full((H, W, 3), 250, dtype=torch.uint8)
    condition = base.model.build_condition(frames, mask, spy(seen), last_frame=finished)
    inactive, reactive = seen
    assert float((reactive[:4, :16, :16] - (GREY / 127.5 - 1)).abs().max()) < 1e-6
    assert not reactive[4].any() and float(inactive[4].min()) > 0.9
    assert not inactive[:4, :16, :16].any()
    assert not condition.mask[4].any() and condition.mask[:4, :16, :16].all()


# --------------------------------------------------------------------------------------- the edit


@pytest.fixture
def files(tmp_path: Path) -> Path:
    draw = torch.Generator().manual_seed(0)
    frames = torch.randint(60, 200, (H, W, 3), generator=draw, dtype=torch.uint8)
    media.write_clip(tmp_path / "video.mp4", Clip(frames.repeat(F, 1, 1, 1), 12))
    for name, left in (("mask", 0), ("mask2", 32)):
        mask = torch.zeros(F, H, W, dtype=torch.bool)
        mask[:, :16, left : left + 16] = True
        media.write_mask(tmp_path / f"{name}.mp4", mask, fps=12)
    for i, name in enumerate(("object", "object2")):
        media.write_image(tmp_path / f"{name}.png", frames[: 16 + i, 4 * i : 20])
    media.write_image(tmp_path / "finished.png", 255 - frames)
    return tmp_path


def edit(files: Path, folder: Path, *more: str, out: str = "out") -> Result:
    command = command_line(
        "edit",
        video=files / "video.mp4",
        mask=files / "mask.mp4",
        object=files / "object.png",
        base=folder / "base",
        adapter=folder / "adapter",
        steps=2,
        out=files / out,
    )
    return CliRunner().invoke(main, [*command, *more])


def test_an_edit_end_to_end(files: Path, folder: Path) -> None:
    """Two objects, first and last frame, windows, a prompt."""
    more = [
        "--mask", str(files / "mask2.mp4"),
        "--object", str(files / "object2.png"),
        "--first-frame", str(files / "finished.png"),
        "--last-frame", str(files / "finished.png"),
        "--window", "5",
        "--prompt", "a hand",
        "--no-keep-background",
    ]  # fmt: skip
    result = edit(files, folder, *more)
    assert result.exit_code == 0, result.output
    record = json.loads((files / "out" / "edit.json").read_text())
    assert record["windows"] == [[0, 5], [4, 9]]
    assert media.read_clip(files / "out" / "edited.mp4").frames.shape == (F, H, W, 3)
    again = edit(files, folder, *more, out="again")
    assert again.exit_code == 0, again.output
    frames = [media.read_clip(files / name / "edited.mp4").frames for name in ("out", "again")]
    assert torch.equal(*frames)


def test_strengths_are_refused_before_anything_is_loaded(
    files: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WanVACEBase, "load", None)
    result = edit(files, folder, "--strength", "2")
    assert result.exit_code == 1
    assert "--strength: got [2.0], wanted none: references of this base are frames" in result.output


def pipeline(folder: Path) -> genhoi.GenHOIPipeline:
    adapter = genhoi.GenHOIAdapter.from_pretrained(folder / "adapter")
    return genhoi.GenHOIPipeline.from_pretrained(folder / "base", adapter=adapter)


@pytest.mark.filterwarnings("ignore::genhoi.EditWarning")
def test_order_and_number_of_objects_matter(folder: Path) -> None:
    """Every picture is a frame of the sequence; none of them reaches the result as a frame."""
    made = pipeline(folder)
    clip = Clip(torch.full((5, H, W, 3), 90, dtype=torch.uint8))
    mask = torch.zeros(5, H, W, dtype=torch.bool)
    mask[:, :16, 16:32] = True
    mugs = [torch.full((16, 16, 3), c, dtype=torch.uint8) for c in (20, 230)]
    mugs[0][:8] = 120
    shapes: list[tuple[int, ...]] = []
    made.base.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["hidden_states"].shape)),
        with_kwargs=True,
    )

    def run(objects: list[Tensor]) -> Tensor:
        masks, seen = [mask] * len(objects), []
        edited = made(clip, masks, objects, steps=2, callback=seen.append, progress_bar=False)
        assert edited.frames.shape == clip.frames.shape
        return seen[-1].latents[:, :, len(objects) :]

    one, both, swapped = run(mugs[:1]), run(mugs), run(mugs[::-1])
    assert one.shape == both.shape == (1, 16, 2, H // 8, W // 8)
    assert [shape[2] for shape in shapes] == [3] * 4 + [4] * 8, "two steps, with and without text"
    assert not torch.equal(one, both) and not torch.equal(both, swapped)
    with pytest.raises(ValueError, match=r"strengths: got \[2.0\], wanted None"):
        made(clip, mask, mugs[0], strengths=[2.0])


def test_kinds_are_told_by_their_index(folder: Path, tmp_path: Path) -> None:
    assert base_kind(folder / "base") is WanVACEBase
    assert base_kind(save_tiny_base(tmp_path / "i2v")) is not WanVACEBase
    index = json.loads((folder / "base" / "model_index.json").read_text())
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "model_index.json").write_text(json.dumps(index | {"_class_name": "WanAnimatePipeline"}))
    with pytest.raises(
        ValueError, match="holds a WanAnimatePipeline, wanted a WanImageToVideoPipeline or"
    ):
        base_kind(odd).read_config(odd)


# ----------------------------------------------------------------------------------- the training


def config_on(folder: Path, **changes: Any) -> TrainConfig:
    values = {"base": str(folder / "base"), "given": {"first": 1.0}, "reference_dropout": None}
    return small_config(**(values | changes))


def test_a_training_learns_and_its_result_edits(folder: Path, tmp_path: Path) -> None:
    base = load_base(folder / "base")
    clips = encode_dataset(base, Noise(2), tmp_path / "latents", given=["first"])
    config = config_on(folder, steps=12, sample_every=12, samples=1)
    trainer = Trainer(
        config, tmp_path / "run", clips, base=base, accelerator=fresh_accelerator(config)
    )
    before = {name: w.detach().clone() for name, w in trainer.weights().items()}
    losses: list[float] = []
    trainer.run(lambda progress: losses.append(progress.loss))
    assert sum(losses[-3:]) < sum(losses[:3])
    changed = {n for n, w in trainer.weights().items() if not torch.equal(w, before[n])}
    assert {n for n in before if ".lora." in n} <= changed
    assert any("self_gate" in n for n in changed) and any("text_gate" in n for n in changed)
    adapter = genhoi.GenHOIAdapter.from_pretrained(tmp_path / "run" / "adapter")
    assert (adapter.config.references, adapter.config.rank) == ("frames", 4)
    assert not adapter.is_fresh
    assert (tmp_path / "run" / "samples").is_dir()


def test_dropped_references_are_refused(folder: Path, tmp_path: Path) -> None:
    base = load_base(folder / "base")
    clips = encode_dataset(base, Noise(2), tmp_path / "latents", given=["first"])
    config = config_on(folder, reference_dropout=0.5)
    with pytest.raises(ValueError, match=r"reference_dropout: got 0\.5, wanted 0 or none"):
        Trainer(config, tmp_path / "run", clips, base=base, accelerator=fresh_accelerator(config))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mask-gate"], "--mask-gate: got it, wanted none: references of a VACE model"),
        (["--reference-dropout", "0.2"], "--reference-dropout: got 0.2, wanted 0 or none"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_encoded(
    folder: Path, tmp_path: Path, flags: list[str], message: str
) -> None:
    command = command_line("train", base=folder / "base", out=tmp_path / "run")
    result = CliRunner().invoke(main, [*command, *flags])
    assert result.exit_code == 1
    assert message in result.output and not (tmp_path / "run").exists(), result.output
