"""Inspection: shares are those of plain attention, the gate is exact, the picture is drawn."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

import genhoi
from genhoi.inspection.inspect import Inspection, inspect_clip
from genhoi.inspection.pixel_attention import PixelAttention, pixel_features
from genhoi.media import Clip
from genhoi_kernels import HeadSlidingRope, MaskGate, VideoRope, apply_rope

SHARED = Path(os.environ.get("GENHOI_SHARED", Path(__file__).parents[3] / "shared"))
REAL = SHARED / "data" / "hoi_clip"
needs_real_clip = pytest.mark.skipif(
    not (REAL / "mask.mp4").is_file(),
    reason=f"no clip in {REAL}; GENHOI_SHARED names the folder that holds data/hoi_clip",
)


def still_scene(
    frames: int = 21, height: int = 48, width: int = 80
) -> tuple[Clip, torch.Tensor, torch.Tensor]:
    """A coloured square that rests on a noisy wall, its mask, and its picture."""
    random = torch.Generator().manual_seed(0)
    wall = torch.randint(60, 200, (height, width, 3), generator=random, dtype=torch.uint8)
    wall[16:32, 32:64] = torch.tensor([230, 60, 30], dtype=torch.uint8)
    mask = torch.zeros(frames, height, width, dtype=torch.bool)
    mask[:, 16:32, 32:64] = True
    picture = torch.full((20, 20, 3), 128, dtype=torch.uint8)
    picture[2:18, 2:18] = torch.tensor([230, 60, 30], dtype=torch.uint8)
    return Clip(wall.repeat(frames, 1, 1, 1), 24), mask, picture


@pytest.fixture(scope="module")
def inspection() -> Inspection:
    return inspect_clip(*still_scene(), heads=6, head_dim=16, timing_repeats=1)


def is_rounding(inspection: Inspection, value: float) -> bool:
    """0, but for the eager backend, whose sums depend on the width of the logits."""
    return value == 0 or (inspection.environment["backend"] == "eager" and value < 1e-5)


def test_grid_and_tokens(inspection: Inspection) -> None:
    assert inspection.grid == (6, 3, 5)
    assert inspection.ref_grid == (3, 5)
    want = torch.zeros(6, 3, 5, dtype=torch.bool)
    want[1:, 1, 2:4] = True
    assert torch.equal(inspection.tokens, want)


def test_background_and_frame_0_never_see_the_reference(inspection: Inspection) -> None:
    for result in inspection.schedules:
        assert is_rounding(inspection, result.background_max)
        assert is_rounding(inspection, float(result.mass[~inspection.tokens].abs().max()))
        assert (result.mass[inspection.tokens] > 0.001).all()
        assert result.curve[0] is None


def test_spread_is_largest_over_smallest_frame(inspection: Inspection) -> None:
    for result in inspection.schedules:
        by_frame = [result.mass[t][inspection.tokens[t]].mean().item() for t in range(1, 6)]
        assert result.curve[1:] == pytest.approx(by_frame, rel=1e-4)
        assert result.spread == pytest.approx(max(by_frame) / min(by_frame), rel=1e-4)


def test_sliding_heads_balance_what_a_fixed_frame_does_not(inspection: Inspection) -> None:
    fixed, paper, release = inspection.schedules
    assert fixed.spread > 1.3
    assert paper.spread < 1 + 0.5 * (fixed.spread - 1)
    assert release.spread < 1 + 0.5 * (fixed.spread - 1)
    assert fixed.head_frames == (-1.0,) * 6
    assert paper.head_frames == (0, 1, 2, 3, 4, 5)


def test_shares_equal_those_of_the_whole_attention_matrix(inspection: Inspection) -> None:
    """The module never builds it; here, at a small size, it is built in float64."""
    run = PixelAttention(
        features=pixel_features(inspection.clip.frames),
        ref_features=pixel_features(inspection.reference[None]),
        grid=inspection.grid,
        heads=6,
        head_dim=16,
        dtype=torch.float64,
        backend="eager",
        gate=mask_gate(inspection),
        seed=0,
    )
    qk, _, k_ref, _ = run.projected(0, 6)
    for result in inspection.schedules:
        q = apply_rope(qk, VideoRope(inspection.grid, head_dim=16))[0]
        slide = HeadSlidingRope(
            inspection.grid,
            (inspection.ref_grid,),
            head_dim=16,
            num_heads=6,
            schedule=result.schedule,
        )
        r = apply_rope(k_ref, slide)[0]
        video = torch.einsum("nhd,mhd->hnm", q, q) / 4
        to_ref = torch.einsum("nhd,mhd->hnm", q, r) / 4
        to_ref[:, ~inspection.tokens.flatten()] = -torch.inf
        share = torch.cat([video, to_ref], -1).softmax(-1)[..., video.shape[-1] :].sum(-1).mean(0)
        torch.testing.assert_close(result.mass.flatten(), share.float(), atol=2e-6, rtol=1e-4)


def mask_gate(inspection: Inspection) -> MaskGate:
    return MaskGate.build(inspection.tokens.view(1, -1))


def test_a_token_likes_the_object_better_than_a_token_of_another_colour() -> None:
    clip, mask, picture = still_scene()
    clip.frames[:, 16:32, 48:64] = torch.tensor([20, 60, 220], dtype=torch.uint8)
    inspection = inspect_clip(clip, mask, picture, heads=6, head_dim=16, timing_repeats=0)
    alike, unlike = inspection.schedules[1].mass[1:, 1, 2], inspection.schedules[1].mass[1:, 1, 3]
    assert (alike > 2 * unlike).all()
    assert inspection.timing is None


def test_frames_without_a_masked_token_have_no_value() -> None:
    clip, mask, picture = still_scene()
    mask[5:13] = False
    inspection = inspect_clip(clip, mask, picture, heads=2, head_dim=16, timing_repeats=0)
    assert [value is None for value in inspection.schedules[0].curve] == [
        True,
        False,
        True,
        True,
        False,
        False,
    ]


def test_times_and_surroundings_are_reported(inspection: Inspection) -> None:
    timing = inspection.timing
    assert timing is not None
    assert min(timing.op, timing.op_with_rotation, timing.sdpa) > 0
    assert (timing.heads, timing.repeats) == (2, 1)
    assert timing.mask_bytes == 4 * 90 * (90 + 15)
    assert {"backend", "torch", "threads", "device", "genhoi_kernels"} <= set(
        inspection.environment
    )


def test_progress_counts_up_to_the_end() -> None:
    seen: list[tuple[int, int]] = []
    inspect_clip(
        *still_scene(frames=5),
        heads=2,
        head_dim=16,
        timing_repeats=1,
        progress=lambda done, total, what: seen.append((done, total)),
    )
    assert [done for done, _ in seen] == list(range(len(seen)))
    assert {total for _, total in seen} == {len(seen)}


def test_the_summary_is_json_with_the_numbers(inspection: Inspection, tmp_path: Path) -> None:
    path = genhoi.write_summary(tmp_path / "inspect.json", inspection)
    numbers = json.loads(path.read_text())
    assert numbers["grid"] == [6, 3, 5]
    assert numbers["video_tokens"] == 90
    assert [s["schedule"] for s in numbers["schedules"]] == [-1.0, "paper", "release"]
    assert numbers["schedules"][0]["spread"] == inspection.schedules[0].spread
    assert numbers["background_exactly_zero"] is all(
        s.background_max == 0 for s in inspection.schedules
    )
    with pytest.raises(FileExistsError):
        genhoi.write_summary(path, inspection)


def test_the_picture_is_drawn_whole_or_not_at_all(
    inspection: Inspection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = genhoi.draw_inspection(tmp_path / "inspect.png", inspection)
    with Image.open(path) as image:
        assert image.width > 1000 and image.height > 800
    monkeypatch.setattr(Path, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        genhoi.draw_inspection(tmp_path / "second.png", inspection)
    assert [p.name for p in tmp_path.iterdir()] == ["inspect.png"]
    with pytest.raises(ValueError, match=r"ending in \.png"):
        genhoi.draw_inspection(tmp_path / "inspect.pdf", inspection)


@pytest.mark.parametrize("slowest", [None, 1.3e-6, 1.7e-4, 0.0997, 0.62, 75.0])
def test_no_texts_of_the_picture_overlap(inspection: Inspection, slowest: float | None) -> None:
    """Also where an attention call took another time, in seconds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    from genhoi.inspection.figure import _figure

    if slowest is not None and inspection.timing is not None:
        times = {"sdpa": slowest, "op": slowest / 3, "op_with_rotation": slowest / 2}
        inspection = dataclasses.replace(
            inspection, timing=dataclasses.replace(inspection.timing, **times)
        )
    figure = _figure(inspection)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    # matplotlib keeps the numbers of an axis that is switched off, but does not draw them.
    undrawn = [
        a.findobj(Text) for axes in figure.axes if not axes.axison for a in (axes.xaxis, axes.yaxis)
    ]
    hidden = {text for texts in undrawn for text in texts}
    texts = [
        t
        for t in figure.findobj(Text)
        if t.get_text().strip() and t.get_visible() and t not in hidden
    ]
    boxes = [(t.get_text(), t.get_window_extent(canvas.get_renderer())) for t in texts]
    pairs = itertools.combinations(boxes, 2)
    assert not [(a, b) for (a, x), (b, y) in pairs if a != b and x.overlaps(y)]
    drawn = figure.get_tightbbox(canvas.get_renderer())  # in inches
    width, height = figure.get_size_inches()
    assert drawn.x0 >= 0 and drawn.y0 >= 0 and drawn.x1 <= width and drawn.y1 <= height


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (
            {"clip": Clip(torch.zeros(4, 48, 80, 3, dtype=torch.uint8))},
            ValueError,
            "clip: got 4 frames",
        ),
        (
            {"clip": Clip(torch.zeros(5, 40, 80, 3, dtype=torch.uint8))},
            ValueError,
            "clip: got 80x40",
        ),
        ({"mask": torch.zeros(9, 48, 80, dtype=torch.bool)}, ValueError, "mask: got shape"),
        ({"mask": torch.zeros(5, 48, 80)}, TypeError, "mask: got torch.float32"),
        ({"mask": torch.zeros(5, 48, 80, dtype=torch.bool)}, ValueError, "no token after frame 0"),
        ({"heads": 0}, ValueError, "heads: got 0"),
        ({"head_dim": 15}, ValueError, "head_dim: got 15"),
        ({"backend": "abacus"}, ValueError, "abacus"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, words) -> None:  # type: ignore[no-untyped-def]
    clip, mask, picture = still_scene(frames=5)
    arguments = {"clip": clip, "mask": mask, "object_image": picture, "head_dim": 16} | change
    with pytest.raises(error, match=words):
        inspect_clip(**arguments)


@pytest.mark.shared
@needs_real_clip
def test_a_real_clip() -> None:
    clip = genhoi.read_clip(REAL / "target.mp4")
    mask = genhoi.read_mask(REAL / "mask.mp4", like=clip)
    assert clip.frames.shape == (81, 272, 480, 3)
    share = mask.float().mean((1, 2))
    assert 0.05 < share.min() and share.max() < 0.16
    inspection = inspect_clip(
        genhoi.resize_clip(clip, (128, 224)),
        genhoi.resize_mask(mask, (128, 224)),
        genhoi.read_image(REAL / "object.png"),
        heads=6,
        head_dim=32,
        timing_repeats=0,
    )
    fixed, paper, release = inspection.schedules
    assert fixed.spread > 1.7
    assert max(paper.spread, release.spread) < 0.75 * fixed.spread
    assert all(is_rounding(inspection, result.background_max) for result in inspection.schedules)
