"""The ablation study in its smallest form: pieces, resuming, tables, plots; and VACE's way."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_training import forget_accelerator
from support.tiny_wan import GRID, inputs, tiny_wan

pytest.importorskip("skimage", reason="scikit-image carries the photographs")
pytest.importorskip("accelerate", reason="training runs on accelerate")

from benchmarks.ablation.first_frame import FirstFrame
from benchmarks.ablation.plan import (
    LATENT_FRAMES,
    LONG_LATENT_FRAMES,
    SCALES,
    VARIANTS,
    Run,
    Scale,
    adapt_config,
    schedule_for,
)
from benchmarks.ablation.results import thirds
from benchmarks.ablation.run import Study
from benchmarks.ablation.tables import collect_tables
from genhoi import GenHOIAdapter

SMALL = Scale(
    clips=4,
    base_steps=2,
    base_batch=2,
    evaluations=(0, 2),
    batch=2,
    test_set=3,
    test_clips=2,
    early_clips=2,
    sampling_steps=2,
)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_the_whole_study(tmp_path: Path) -> None:
    def study() -> tuple[Study, list[str]]:
        lines: list[str] = []
        return Study(tmp_path, SMALL, lines.append), lines

    forget_accelerator()
    first, _ = study()
    first.pretrain("near", 0)
    for variant in ("fixed", "vace"):
        first.adapt(Run("near", variant, 0))
    again, lines = study()
    again.pretrain("near", 0)
    again.adapt(Run("near", "vace", 0))
    assert not lines, "what is done is not done again"
    with pytest.raises(ValueError, match=r"scale\.json says"):
        Study(tmp_path, SCALES["small"], print)

    written = {path.name for path in collect_tables(tmp_path)}
    assert {"summary.csv", "curves.csv", "clips.csv", "paired.csv", "mass.csv"} <= written
    assert {f"{name}-near.png" for name in ("frames", "steps", "gaps", "leakage")} <= written
    summary = rows(tmp_path / "results" / "summary.csv")
    last = [r for r in summary if r["variant"] == "fixed" and r["step"] == "2"]
    assert {(r["length"], r["first_frame"]) for r in last} == {
        ("trained", "first"),
        ("trained", "none"),
        ("twice", "first"),
        ("twice", "none"),
    }
    assert all(0 < float(r["object_psnr_all"]) < 60 for r in summary)
    alone = [r for r in summary if r["variant"] == "alone"]
    assert all(float(r["background_change"]) == 0 for r in alone)
    mass = rows(tmp_path / "results" / "mass.csv")
    assert all(0 < float(r["share"]) < 1 for r in mass)
    paired = rows(tmp_path / "results" / "paired.csv")
    assert {r["variant"] for r in paired} == {"alone", "vace"}

    # Another machine's clips count too.
    clips = tmp_path / "results" / "clips.csv"
    other = [r | {"seed": "7"} for r in rows(clips)]
    with clips.open("a", newline="") as file:
        csv.DictWriter(file, list(other[0])).writerows(other)
    collect_tables(tmp_path)
    assert {r["seeds"] for r in rows(tmp_path / "results" / "paired.csv")} == {"0 7"}


def test_variants_are_what_they_are_called() -> None:
    def options(name: str) -> Any:
        return adapt_config(SMALL, Run("near", name, 0), Path("base"))

    assert options("fixed").schedule == -1 and options("release").schedule == "release"
    assert options("mask").mask_gate and options("mask").flow_gate is None
    assert options("mask+flow").flow_gate == "token"
    assert not options("paper").mask_gate and options("paper").schedule == "paper"
    assert not options("paper-v").queries_keys and options("paper-video").video_rank == 16
    assert schedule_for(VARIANTS["middle"], LATENT_FRAMES) == 8.0
    assert schedule_for(VARIANTS["middle"], LONG_LATENT_FRAMES) == 15.0


def test_thirds_leave_frames_without_the_object_out() -> None:
    values = np.array([[1.0, np.nan, 3.0, 5.0, 7.0, np.nan]])
    means = thirds(values)
    assert [float(means[k][0]) for k in ("first", "middle", "last", "all")] == [1, 4, 7, 4]


def test_the_reference_as_a_frame_is_the_longer_clip() -> None:
    """Without low-rank weights it is the base on a clip with the reference as frame 0."""
    model = tiny_wan()
    arguments = inputs(model) | {"return_dict": False}
    x = arguments["hidden_states"]
    picture = torch.randn(x[:, :16, :1].shape, generator=torch.Generator().manual_seed(3))
    frame = torch.cat([picture, torch.zeros_like(picture[:, :4]), picture], dim=1)
    with torch.no_grad():
        longer = model(**arguments | {"hidden_states": torch.cat([frame, x], dim=2)})[0]
        plain = model(**arguments)[0]
        attachment = FirstFrame(model, GenHOIAdapter.for_transformer(model, rank=4))
        attachment.set_reference([picture])
        output = model(**arguments)[0]
        torch.testing.assert_close(output, longer[:, :, 1:], rtol=1e-4, atol=1e-5)
        attachment.set_reference(None)
        again = model(**arguments)[0]
        torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-5)
    assert output.shape[2] == GRID[0] == plain.shape[2]
    assert not torch.allclose(output, plain, atol=1e-3)
