"""The tiny model's measurement: numbers of known arrays, a retrieval that can fail, resuming."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from support.tiny_base import save_tiny_base
from support.tiny_wan import lively_adapter, tiny_wan
from torch import Tensor

from benchmarks.tiny_model import measure as measuring
from benchmarks.tiny_model import parts
from benchmarks.tiny_model.measure import Measurement, measure
from benchmarks.tiny_model.measure_bars import as_records, bars_of, codec_summary, summarise
from benchmarks.tiny_model.measure_clip import Condition, TestClips, edit, edit_row
from benchmarks.tiny_model.measure_files import Rows, base_digest
from benchmarks.tiny_model.retrieval import CANDIDATES, candidates_of, found
from genhoi.data.sample import HOISample
from genhoi.data.synthetic import SyntheticHOI
from genhoi.editing.pipeline import GenHOIPipeline
from genhoi.media import Clip, fit_image, read_image

FRAMES, SIDE = 5, 64
NONE_TIGHT = Condition("none", "tight")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With an adapter of random weights, which make the reference count."""
    folder = save_tiny_base(tmp_path_factory.mktemp("base") / "base")
    lively_adapter(tiny_wan()).save_pretrained(folder / "adapter")
    return folder


@pytest.fixture(scope="module")
def pipeline(base: Path) -> GenHOIPipeline:
    return GenHOIPipeline.from_pretrained(base)


@pytest.fixture(scope="module")
def samples() -> list[HOISample]:
    size = (SIDE, SIDE)
    return list(SyntheticHOI("test", clips=CANDIDATES, frames=FRAMES, size=size))


# ------------------------------------------------------------------------------------- retrieval


def striped(seed: int) -> Tensor:
    """A picture with stripes of two colours, of a direction of its own."""
    rng = np.random.default_rng(seed)
    colours = torch.from_numpy(rng.integers(0, 256, (2, 3), dtype=np.uint8))
    angle = torch.tensor(seed * torch.pi / 8)
    rows, columns = torch.meshgrid(torch.arange(40.0), torch.arange(40.0), indexing="ij")
    wave = torch.sin((rows * angle.sin() + columns * angle.cos()) * (0.4 + 0.1 * seed)) > 0
    return colours[wave.long()]


def planted(picture: Tensor, frames: int = 9) -> tuple[Tensor, Tensor]:
    """Frames of noise with a picture in them, and where it is."""
    draw = torch.Generator().manual_seed(1)
    shape = (frames, 64, 64, 3)
    clip = torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw)
    region = torch.zeros(frames, 64, 64, dtype=torch.bool)
    small = fit_image(picture, (32, 32))
    for i in range(frames):
        clip[i, 10 : 10 + 32, i : i + 32] = small
        region[i, 10 : 10 + 32, i : i + 32] = True
    return clip, region


def test_finds_a_planted_object_and_not_another() -> None:
    pictures = [striped(i) for i in range(CANDIDATES)]
    for i in range(CANDIDATES):
        clip, region = planted(pictures[i])
        own_first = [pictures[i], *pictures[:i], *pictures[i + 1 :]]
        assert found(clip, region, own_first).tolist() == [1, 1, 1]
        swapped = [own_first[1], own_first[0], *own_first[2:]]
        assert found(clip, region, swapped).tolist() == [0, 0, 0]


def test_finds_by_thirds() -> None:
    """An object that becomes another one in the last third is not found there."""
    one, other = striped(0), striped(3)
    (clip, region), (late, _) = planted(one), planted(other)
    clip[6:] = late[6:]
    assert found(clip, region, [one, other]).tolist() == [1, 1, 0]
    region[:3] = False
    assert found(clip, region, [one, other])[0].isnan()
    assert found(clip, region, [one, other])[1:].tolist() == [1, 0]


def test_a_tie_is_not_found() -> None:
    clip, region = planted(striped(2))
    assert found(clip, region, [striped(2), striped(2)]).tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="pictures: got 1, wanted at least 2"):
        found(clip, region, [striped(2)])


def test_finds_the_objects_of_true_clips(samples: list[HOISample]) -> None:
    """The ceiling: from pictures of another side. With the next clip's object first, nothing."""
    results, swapped = [], []
    for i, sample in enumerate(samples):
        pictures = [samples[j].object for j in candidates_of(i, len(samples))]
        assert sample.object_mask is not None
        results.append(found(sample.clip.frames, sample.object_mask, pictures))
        pictures[:2] = pictures[1::-1]
        swapped.append(found(sample.clip.frames, sample.object_mask, pictures))
    assert torch.stack(results).nanmean() >= 0.9
    assert torch.stack(swapped).nanmean() <= 0.1


def test_candidates() -> None:
    assert candidates_of(30, 32) == [30, 31, 0, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="clips: got 7, wanted at least 8"):
        candidates_of(0, 7)


# ------------------------------------------------------------------------------- a clip's numbers


def known_sample() -> HOISample:
    """Grey frames of 9 with boxes for object, hand and mask."""
    frames = torch.full((9, 64, 64, 3), 100, dtype=torch.uint8)
    masks = torch.zeros(3, 9, 64, 64, dtype=torch.bool)
    masks[0, :, 20:30, 20:30] = True
    masks[1, :, 30:40, 20:30] = True
    masks[2, :, 16:44, 16:34] = True
    masks[0, 3:6] = False  # the object is hidden in the middle third
    picture = striped(0)
    return HOISample(
        "known", Clip(frames), masks[2], picture, object_mask=masks[0], hand_mask=masks[1]
    )


def test_numbers_of_known_arrays() -> None:
    sample = known_sample()
    assert sample.object_mask is not None and sample.hand_mask is not None
    edited, without = sample.clip.frames.clone(), sample.clip.frames.clone()
    edited[sample.object_mask] = 110
    edited[6:][sample.object_mask[6:]] = 120
    edited[sample.hand_mask] = 104
    edited[~sample.mask] = 102
    without[sample.object_mask] = 140
    pictures = [striped(i) for i in range(3)]
    row = edit_row(sample, edited, without, pictures=pictures, seconds=1.23456)
    by = {d: round(20 * np.log10(255 / d), 4) for d in (2, 4, 10, 20, 40)}
    assert row["object_psnr"] == [by[10], None, by[20]]
    assert row["without_object_psnr"] == [by[40], None, by[40]]
    assert row["hand_psnr"] == by[4] and row["background_psnr"] == by[2]
    assert row["found"][1] is None and row["seconds"] == 1.235
    assert row["object_ssim"][0] < 1 and row["object_ssim"][1] is None
    # Put back, the soft edge alone differs from the source.
    assert row["outside_difference"] == 2 and row["beyond_edge_difference"] == 0
    json.dumps(row, allow_nan=False)


def test_background_put_back_is_the_pipelines(pipeline: GenHOIPipeline) -> None:
    """`edit_row` pastes by itself, and so saves an edit: the differences are the same."""
    sample = TestClips(CANDIDATES, FRAMES, SIDE).sample(0)
    edited = edit(pipeline, sample, NONE_TIGHT, index=3, steps=1)
    row = edit_row(sample, edited, edited, pictures=[striped(0), striped(1)], seconds=0)
    kept = pipeline(
        sample.clip,
        sample.mask,
        sample.object,
        seed=3,
        steps=1,
        crop="none",
        size=(SIDE, SIDE),
        keep_background=True,
        progress_bar=False,
    ).frames
    difference = (kept.int() - sample.clip.frames.int()).abs().amax(-1)
    assert row["outside_difference"] == int(difference[~sample.mask].max()) > 0
    assert row["beyond_edge_difference"] == 0
    assert (edited != sample.clip.frames)[~sample.mask].any()


def test_an_edit_without_reference_knows_no_object(
    pipeline: GenHOIPipeline, samples: list[HOISample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen in the latents, of which a random codec shows little."""
    one = samples[0]
    other = HOISample(one.name, one.clip, one.mask, samples[1].object)
    decode, latents = pipeline.base.decode, []

    def watched(x: Tensor) -> Tensor:
        latents.append(x.clone())
        return decode(x)

    monkeypatch.setattr(pipeline.base, "decode", watched)
    for reference in (False, True):
        for sample in (one, other):
            edit(pipeline, sample, NONE_TIGHT, index=0, steps=2, reference=reference)
    edit(pipeline, one, Condition("first", "tight"), index=0, steps=2)
    assert torch.equal(latents[0], latents[1])
    changes = [(x - latents[2]).abs().max().item() for x in (latents[3], latents[0], latents[4])]
    assert min(changes) > 1e-3, changes


def test_conditions() -> None:
    assert str(Condition.parse("first-box")) == "first-box"
    for text in ("last-box", "first", "first-round", ""):
        with pytest.raises(ValueError, match=r"conditions: got .*wanted first or none"):
            Condition.parse(text)


# ------------------------------------------------------------------------------------------ bars


def row_of(**changes: Any) -> dict[str, Any]:
    values = {
        "object_psnr": [18.0, 18.0, 18.0],
        "without_object_psnr": [15.0, 15.0, 15.0],
        "object_ssim": [0.5, 0.5, 0.5],
        "found": [1.0, 1.0, 1.0],
        "without_found": [0.0, 0.0, None],
        "hand_psnr": 21.0,
        "background_psnr": 27.0,
        "seconds": 2.0,
        "outside_difference": 9,
        "beyond_edge_difference": 1,
    }
    return values | changes


def failed(rows: list[dict[str, Any]]) -> list[str]:
    return [bar.name.partition(",")[0] for bar in bars_of("x", summarise(rows)) if not bar.passed]


def test_bars_pass_and_fail_each_for_itself() -> None:
    assert failed([row_of()] * 10) == []
    low = {"object_psnr": [17.4] * 3, "without_object_psnr": [14.0] * 3}
    assert failed([row_of(**low)]) == ["object PSNR"]
    assert failed([row_of(without_object_psnr=[15.1] * 3)]) == ["object PSNR above no reference"]
    assert failed([row_of(hand_psnr=20.0)]) == ["hand PSNR"]
    assert failed([row_of(background_psnr=None)]) == ["background PSNR"]
    two = [row_of(), row_of(beyond_edge_difference=2)]
    assert failed(two) == ["background put back"]
    # Nine of ten found is enough, and has to be so in every third.
    nine = [row_of()] * 9
    assert failed([*nine, row_of(found=[0.0, 0.0, 0.0])]) == []
    lost = [*nine[1:], row_of(found=[1.0, 0.0, 1.0]), row_of(found=[1.0, 0.0, 1.0])]
    assert failed(lost) == ["object found"]
    assert failed([row_of(found=[1.0, None, 1.0])]) == ["object found"]


def test_summary_over_clips() -> None:
    rows = [
        row_of(object_psnr=[10.0, 20.0, None], without_object_psnr=[9.0, 16.0, None]),
        row_of(object_psnr=[20.0, 30.0, 40.0], without_object_psnr=[20.0, 28.0, 30.0]),
    ]
    summary = summarise(rows)
    assert summary["object_psnr"] == {
        "first": 15.0,
        "middle": 25.0,
        "last": 40.0,
        "all": 22.5,
        "error": 7.5,
    }
    assert summary["gain"]["all"] == pytest.approx((2.5 + 4.0) / 2)
    assert summary["without_found"]["last"] is None
    nothing = summarise([row_of(hand_psnr=None)])
    assert nothing["hand_psnr"] == {"all": None, "error": None}
    values = {bar["name"]: bar["value"] for bar in as_records(bars_of("x", nothing))}
    assert values["hand PSNR, dB"] is None
    coded = {"psnr": 30.0, "ssim": 0.9, "object_psnr": [29.0, 30.0, None]}
    coded |= {"true_found": [1.0, 1.0, 1.0], "codec_found": [1.0, 0.0, 1.0]}
    codec = codec_summary([coded, coded])
    assert codec["psnr"] == 30.0 and codec["object_psnr"]["last"] is None
    assert codec["codec_found"]["middle"] == 0.0


# -------------------------------------------------------------------------------- the whole of it


def measurement(pipeline: GenHOIPipeline, folder: Path) -> Measurement:
    return Measurement(
        pipeline, TestClips(CANDIDATES, FRAMES, SIDE), steps=1, rows=Rows(folder, {"model": "m"})
    )


@pytest.mark.slow
def test_a_measurement_goes_on_where_it_was_killed(
    pipeline: GenHOIPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conditions = [NONE_TIGHT]
    whole = measure(measurement(pipeline, tmp_path / "whole"), conditions, command="c")
    edits: list[tuple[str, int, bool]] = []

    def counted(*args: Any, **options: Any) -> Tensor:
        made = edit(*args, **options)
        edits.append((str(args[2]), options["index"], options.get("reference", True)))
        if len(edits) == 7:
            raise KeyboardInterrupt
        return made

    monkeypatch.setattr(measuring, "edit", counted)
    folder = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        measure(measurement(pipeline, folder), conditions, command="c")
    assert len(list(folder.glob("rows/none-tight-*.json"))) == 3
    assert not (folder / "metrics.json").exists()
    bars = measure(measurement(pipeline, folder), conditions, command="c")
    again = ("none-tight", 3, True)  # the edit that was killed
    assert edits.count(again) == 2 and len(edits) == 2 * CANDIDATES + 1
    assert bars == whole
    records = [json.loads((x / "metrics.json").read_text()) for x in (tmp_path / "whole", folder)]
    for record in records:
        for summary in record["conditions"].values():
            assert summary.pop("seconds")["all"] > 0
    assert records[0] == records[1]
    assert len(records[0]["bars"]) == 6 * len(conditions)
    assert 10 < records[0]["conditions"]["none-tight"]["background_psnr"]["all"] < 40
    with (folder / "clips.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == CANDIDATES
    assert {"condition", "clip", "object_psnr_first", "hand_psnr"} <= lines[0].keys()
    sheets = sorted(folder.glob("sheets/*.png"))
    assert len(sheets) == CANDIDATES
    picture = read_image(sheets[0])
    assert picture.shape == (4 * (SIDE + 14), (1 + FRAMES) * SIDE, 3)
    truth = TestClips(CANDIDATES, FRAMES, SIDE).sample(0).clip.frames
    assert torch.equal(picture[14 : 14 + SIDE, SIDE : 2 * SIDE], truth[0])


def test_rows_of_another_job_are_refused(base: Path, tmp_path: Path) -> None:
    rows = Rows(tmp_path, {"model": "one", "steps": 3})
    assert rows.get("a", lambda: {"x": 1}) == {"x": 1}
    same = Rows(tmp_path, {"model": "one", "steps": 3})
    assert same.get("a", lambda: pytest.fail("measured again")) == {"x": 1}
    with pytest.raises(FileExistsError, match=r"out: .*another model, steps; name another folder"):
        Rows(tmp_path, {"model": "two", "steps": 4})
    with pytest.raises(ValueError, match="Out of range"):  # a row that JSON cannot hold
        rows.get("b", lambda: {"x": float("nan")})
    assert not (tmp_path / "rows" / "b.json").exists()
    before = base_digest(base)
    assert base_digest(base) == before
    path = base / "scheduler" / "scheduler_config.json"
    text = path.read_text()
    path.write_text(text + " ")
    assert base_digest(base) != before
    path.write_text(text)


def test_the_commands_refuse_early(base: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    result = CliRunner().invoke(measuring.main, ["--base", str(base), "--out", out, "--clips", "3"])
    assert result.exit_code == 1 and "clips: got 3, wanted at least 8" in result.output
    words = ["--base", str(base), "--out", out]
    result = CliRunner().invoke(measuring.main, [*words, "--conditions", "none"])
    assert result.exit_code == 1 and "conditions: got 'none'" in result.output
    words += ["--work", str(tmp_path / "work")]
    result = CliRunner().invoke(parts.main, [*words, "--condition", "some-tight"])
    assert result.exit_code == 1 and "conditions: got 'some-tight'" in result.output
    assert not list(tmp_path.iterdir())


# ----------------------------------------------------------------------------------------- parts


def test_parts_are_left_out(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips, rows = TestClips(2, FRAMES, SIDE), Rows(tmp_path / "work", {"model": "m"})
    options: dict[str, Any] = {"steps": 2, "rows": rows}
    results = parts.measure_parts(base, clips, NONE_TIGHT, **options)
    assert [*results] == [variant.name for variant in parts.VARIANTS]
    whole = results["everything"]
    assert whole.shape == (2, 3)
    for name, values in results.items():
        # All of them change something, if only a little, for the weights are random.
        assert (name == "everything") == np.array_equal(values, whole, equal_nan=True), name
    monkeypatch.setattr(parts, "edit", lambda *_, **__: pytest.fail("edited again"))
    again = parts.measure_parts(base, clips, NONE_TIGHT, **options)
    assert all(np.array_equal(again[name], results[name], equal_nan=True) for name in results)
    parts.write_parts(tmp_path / "out", results, command="c", about=["Two clips."])
    lines = (tmp_path / "out" / "parts.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * len(parts.VARIANTS)
    assert parts.table(results) in (tmp_path / "out" / "README.md").read_text()


def test_differences_are_clip_by_clip() -> None:
    whole = np.array([[20.0, 10.0, 5.0], [10.0, 20.0, np.nan]])
    less = whole - np.array([[1.0, 2.0, 3.0], [3.0, 2.0, np.nan]])
    text = parts.table({"everything": whole, "no reference": less})
    assert text.splitlines()[2:] == [
        "| everything | 15.00 | 15.00 | 5.00 |",
        "| no reference | 13.00 (-2.00 ± 1.00) | 13.00 (-2.00 ± 0.00) | 2.00 (-3.00 ± nan) |",
    ]
