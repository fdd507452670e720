"""`--dry-run` from configurations alone, for GPUs that are not here; what lies where, and when."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from support.command_lines import command_line
from support.tiny_base import save_tiny_base
from support.tiny_vace import save_tiny_vace_base
from support.tiny_wan import lively_adapter

from genhoi import media
from genhoi.bases.base import Offload
from genhoi.bases.load import load_base
from genhoi.bases.needs import DENOISING, TRANSFORMER, BaseNeeds, Phase, as_used
from genhoi.bases.wan import WanBase
from genhoi.cli import main
from genhoi.editing.estimate import Estimate, estimate_edit
from genhoi.editing.memory import OffloadMemory, TransformerNeeds, memory_of_edit, what_fits
from genhoi.media import Clip

OFFLOADS: Sequence[Offload] = ("none", "model", "group")
COMPONENTS = ("vae", "text_encoder", "image_encoder")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A pipeline's folder with all its configurations and no weights."""
    folder = save_tiny_base(tmp_path / "base")
    for path in [*folder.rglob("*.safetensors"), *folder.rglob("*.bin")]:
        path.unlink()
    return folder


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A clip of 9 frames, its mask, and an object."""
    media.write_clip(tmp_path / "video.mp4", Clip(torch.zeros(9, 32, 48, 3, dtype=torch.uint8), 12))
    mask = torch.zeros(9, 32, 48, dtype=torch.bool)
    mask[:, 8:24, 8:24] = True
    media.write_mask(tmp_path / "mask.mp4", mask, fps=12)
    Image.new("RGB", (16, 16), "red").save(tmp_path / "object.png")
    return tmp_path


def dry_run(files: Path, base: Path | str, *more: str) -> Result:
    command = command_line(
        "edit",
        video=files / "video.mp4",
        mask=files / "mask.mp4",
        object=files / "object.png",
        out=files / "out",
        window=5,
        base=base,
    )
    return CliRunner().invoke(main, [*command, "--dry-run", *more])


def record(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    values: dict[str, Any] = json.loads(result.stdout)
    return values


def estimate(base: Path | str, **changes: Any) -> Estimate:
    settings: dict[str, Any] = {
        "frames": 9,
        "size": (32, 48),
        "objects": 1,
        "steps": 4,
        "guidance": 1.0,
        "window": 9,
        "dtype": torch.bfloat16,
    }
    return estimate_edit(base, **(settings | changes))


# ------------------------------------------------------------------------------------ the command


def test_configurations_are_enough_and_a_gpu_need_not_be_here(files: Path, base: Path) -> None:
    result = dry_run(files, base, "--device", "h100")
    assert result.exit_code == 0, result.output
    output = " ".join(result.output.replace("│", " ").replace("┃", " ").split())
    for phrase in ("time on h100-80gb", "does it fit? yes", "of 80 GB", "--offload group"):
        assert phrase in output
    assert "measured on an NVIDIA H100" in output and "taken from" not in output
    assert [path.name for path in (files / "out").iterdir()] == ["preview.png"]


def test_json_has_everything(files: Path, base: Path) -> None:
    (base / "vae" / "config.json").unlink()
    values = record(dry_run(files, base, "--device", "a100-40gb", "--json"))
    assert values["device"] == {"name": "a100-40gb", "memory_bytes": 40 * 10**9}
    assert values["estimate"]["assumed"] == ["vae"]
    assert set(values["estimate"]["weight_bytes"]) == {"transformer", "adapter", *COMPONENTS}
    assert values["estimate"]["weight_bytes"]["vae"] == 4 * 126_892_531, "that of Wan2.1"
    assert values["fits"] == {"none": True, "model": True, "group": True}
    assert values["offload"] == "none" and set(values["peak_bytes"]) == set(OFFLOADS)
    assert values["seconds"] == pytest.approx(sum(values["seconds_by_kind"].values()))
    assert not values["speeds"]["measured"] and "not measured" in values["speeds"]["source"]
    phases = values["estimate"]["memory"][0]["phases"]
    assert set(phases) > {"encoding text", "denoising", "decoding frames"}


def test_a_vace_pipeline(files: Path) -> None:
    vace = save_tiny_vace_base(files / "vace")
    result = dry_run(files, vace, "--device", "b200")
    assert result.exit_code == 0, result.output
    assert "nothing: they run with the clip" in result.output
    assert "encoding images" not in result.output


def test_a_type_that_was_not_measured(files: Path) -> None:
    values = record(
        dry_run(
            files,
            "mosaic-untrained",
            "--device",
            "h200",
            "--dtype",
            "float32",
            "--frames",
            "5",
            "--json",
        )
    )
    assert values["seconds"] is None and "unknown" in values["dry_run"]["time on h200"]


def test_the_hubs_configurations_are_enough(
    files: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `hf download NAME --include '*.json'` leaves them."""
    cached = files / "hub" / "models--someone--wan"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("1" * 40)
    (cached / "snapshots").mkdir()
    base.rename(cached / "snapshots" / ("1" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(files / "hub"))
    values = record(dry_run(files, "someone/wan", "--device", "rtx4090", "--json"))
    assert values["offload"] == "none" and values["estimate"]["assumed"] == []


def test_a_gpu_by_name_is_for_dry_runs(files: Path, base: Path) -> None:
    for name in ("h100", "rtx5090"):
        result = CliRunner().invoke(
            main,
            command_line(
                "edit",
                video=files / "video.mp4",
                mask=files / "mask.mp4",
                object=files / "object.png",
                device=name,
            ),
        )
        assert result.exit_code == 1
        assert f"--device: got {name}, which serves --dry-run alone" in result.output
    result = dry_run(files, base, "--device", "h1000")
    assert result.exit_code == 1 and "with --dry-run also h100-80gb" in result.output


def test_an_adapter_of_another_base(files: Path, base: Path) -> None:
    lively_adapter(load_base("mosaic-untrained").transformer).save_pretrained(files / "other")
    result = dry_run(files, base, "--adapter", str(files / "other"))
    assert result.exit_code == 1 and "adapter: got one for a base with" in result.output


def test_training_on_a_gpu_by_name(files: Path) -> None:
    command = ["train", "--base", "mosaic-untrained", "--frames", "9", "--height", "32"]
    command += ["--width", "32", "--out", str(files / "run"), "--device", "l40s"]
    result = CliRunner().invoke(main, [*command, "--dry-run"])
    assert result.exit_code == 0, result.output
    output = " ".join(result.output.replace("│", " ").split())
    for phrase in ("memory on l40s", "of the 48 GB there are", "not measured on this GPU"):
        assert phrase in output
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1 and "which serves --dry-run alone" in result.output


# ------------------------------------------------------------------------------------ the estimate


def test_weights_are_those_of_the_whole_pipeline(tmp_path: Path) -> None:
    folder = save_tiny_base(tmp_path / "base")
    loaded = WanBase(folder, device="cpu", dtype=torch.bfloat16)
    counted = estimate(folder).weight_bytes
    for name in (TRANSFORMER, *COMPONENTS):
        weights = list(getattr(loaded.pipe, name).parameters())
        assert counted[name] == sum(p.nbytes for p in weights), name


def test_work_follows_steps_branches_and_windows() -> None:
    one = estimate("mosaic-untrained")
    assert estimate("mosaic-untrained", steps=8).denoising.products == 2 * one.denoising.products
    both = estimate("mosaic-untrained", guidance=5.0)
    assert both.denoising.products == 2 * one.denoising.products
    assert both.references == one.references, "kept for both branches"
    two = estimate("mosaic-untrained", frames=17)
    assert len(two.windows) == 2 and two.references == one.references, "and for both windows"
    assert two.denoising.attention == 2 * one.denoising.attention
    other = estimate("mosaic-untrained", frames=13)  # two windows, of two lengths
    assert other.references.attention == 2 * one.references.attention


def test_peaks_of_every_phase_and_way() -> None:
    phases = (
        Phase("text", "text_encoder", 1, each_window=False),
        Phase("frames", "vae", 20),
        Phase(DENOISING, TRANSFORMER, 0),
        Phase("back", "vae", 40),
    )
    around = BaseNeeds(
        {"text_encoder": 100, "vae": 3},
        phases=phases,
        offload_order=("text_encoder", TRANSFORMER, "vae"),
    )
    transformer = TransformerNeeds(1000, block_bytes=70, activation_bytes=200, cache_bytes=5)
    none, model, group = memory_of_edit(around, transformer, windows=1, offloads=OFFLOADS)
    assert none.phases == {"text": 1104, "frames": 1123, DENOISING: 1308, "back": 1148}
    # The VAE stays, for nothing comes after it; the text encoder until the transformer comes.
    assert model.phases == {"text": 101, "frames": 123, DENOISING: 1208, "back": 48}
    assert group.phases == {"text": 104, "frames": 123, DENOISING: 378, "back": 148}
    again = memory_of_edit(around, transformer, windows=2, offloads=OFFLOADS)
    assert [way.phases["frames"] for way in again] == [1128, 123, 128], "with what is kept"
    assert (none.peak, what_fits(1300, [none, model, group])) == (1308, model)
    assert what_fits(1250, [none, model, group]) == group, "5 % are left"
    assert what_fits(300, [none, model, group]) is None


def test_components_come_as_they_are_used() -> None:
    order = ("text_encoder", "image_encoder", TRANSFORMER, "vae")
    course = [Phase("", name, 0) for name in ("text_encoder", "vae", "image_encoder", TRANSFORMER)]
    course += [Phase("", "vae", 0), Phase("", "image_encoder", 0), Phase("", TRANSFORMER, 0)]
    assert [sorted(x) for x in as_used(course, order)] == [
        ["text_encoder"],
        ["text_encoder", "vae"],
        ["image_encoder", "vae"],
        [TRANSFORMER, "vae"],
        ["vae"],
        ["image_encoder", "vae"],
        [TRANSFORMER, "vae"],
    ]


def test_the_order_is_that_of_diffusers(base: Path) -> None:
    needs = WanBase.needs(base, dtype=torch.float32, frames=5, size=(32, 32))
    assert needs.offload_order == ("text_encoder", "image_encoder", TRANSFORMER, "vae")
    assert needs.image == (1, 17, 20)
    assert [OffloadMemory("none", {"a": 1}).fits(2), OffloadMemory("none", {"a": 2}).fits(2)] == [
        True,
        False,
    ]
