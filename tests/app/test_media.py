"""Clips, masks and images survive the way to a file and back, or are refused in words."""

from __future__ import annotations

import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genhoi import media
from genhoi.media import Clip

# Largest mean error of a colour, of 255: what compression may cost on smooth frames.
TOLERANCE = {".mp4": 3, ".webm": 3, ".gif": 12, "": 0}


def smooth_clip(*, frames: int = 6, height: int = 32, width: int = 48, fps: float = 24) -> Clip:
    t, y, x = torch.meshgrid(
        *(torch.linspace(0, 1, n) for n in (frames, height, width)), indexing="ij"
    )
    rgb = torch.stack([x, y * (1 - t), 0.2 + 0.6 * t * x], dim=-1)
    return Clip((255 * rgb).to(torch.uint8), fps)


def mean_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.float() - b.float()).abs().mean().item()


@pytest.mark.parametrize("suffix", TOLERANCE)
@pytest.mark.parametrize("size", [(32, 48), (33, 48), (32, 47), (17, 31)])
def test_a_clip_reads_back_with_its_size_and_colours(
    tmp_path: Path, suffix: str, size: tuple[int, int]
) -> None:
    clip = smooth_clip(height=size[0], width=size[1])
    back = media.read_clip(media.write_clip(tmp_path / f"clip{suffix}", clip))
    assert back.frames.shape == clip.frames.shape
    assert mean_error(back.frames, clip.frames) <= TOLERANCE[suffix]


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
@pytest.mark.parametrize("fps", [24, 25, 12.5, Fraction(30000, 1001), 60])
def test_videos_keep_the_frame_rate(tmp_path: Path, suffix: str, fps: float) -> None:
    path = media.write_clip(tmp_path / f"clip{suffix}", smooth_clip(fps=fps))
    assert media.read_clip(path).fps == Fraction(fps)


@pytest.mark.parametrize("fps", [10, 24, 30])
def test_gifs_keep_the_frame_rate_to_their_hundredths(tmp_path: Path, fps: float) -> None:
    path = media.write_clip(tmp_path / "clip.gif", smooth_clip(frames=24, fps=fps))
    assert float(media.read_clip(path).fps) == pytest.approx(fps, rel=0.02)


def test_gifs_keep_frames_that_repeat(tmp_path: Path) -> None:
    clip = Clip(smooth_clip(frames=1).frames.repeat(5, 1, 1, 1), 10)
    assert media.read_clip(media.write_clip(tmp_path / "still.gif", clip)).num_frames == 5


def test_gifs_refuse_rates_that_players_slow_down(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"clip\.fps: got 60, want at most 50"):
        media.write_clip(tmp_path / "clip.gif", smooth_clip(fps=60))


def test_saturated_colours_are_not_shifted(tmp_path: Path) -> None:
    """A wrong colour matrix (BT.601 for BT.709) would move them by ten and more."""
    frames = torch.zeros(3, 64, 96, 3, dtype=torch.uint8)
    frames[:, :, :48] = torch.tensor([220, 30, 40], dtype=torch.uint8)
    frames[:, :, 48:] = torch.tensor([20, 60, 230], dtype=torch.uint8)
    back = media.read_clip(media.write_clip(tmp_path / "clip.mp4", Clip(frames))).frames
    for column in (20, 80):
        assert (back[:, 32, column].int() - frames[:, 32, column].int()).abs().max() <= 3


@pytest.mark.parametrize("suffix", TOLERANCE)
def test_frames_are_counted_and_cut_at_the_limit(tmp_path: Path, suffix: str) -> None:
    path = media.write_clip(tmp_path / f"clip{suffix}", smooth_clip(frames=7))
    assert media.count_frames(path) == 7
    assert media.read_clip(path, max_frames=3).num_frames == 3


def test_folders_are_read_in_natural_order(tmp_path: Path) -> None:
    for i in (10, 9, 2, 1):
        Image.new("RGB", (8, 6), (i, 0, 0)).save(tmp_path / f"frame_{i}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    assert media.read_clip(tmp_path).frames[:, 0, 0, 0].tolist() == [1, 2, 9, 10]


def test_a_single_image_is_a_clip_of_one_frame(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6), (1, 2, 3)).save(tmp_path / "one.png")
    clip = media.read_clip(tmp_path / "one.png", fps=30)
    assert clip.frames.shape == (1, 6, 8, 3)
    assert clip.fps == 30


def test_a_rotated_video_is_read_upright(tmp_path: Path) -> None:
    """A phone stores frames lying and a matrix that turns them by 90 degrees clockwise."""
    path = media.write_clip(tmp_path / "clip.mp4", smooth_clip())
    lying = media.read_clip(path).frames
    one, unit = 1 << 16, 1 << 30
    plain = struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, unit)
    turned = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, unit)
    head, track = path.read_bytes().split(b"tkhd", 1)
    assert plain in track
    path.write_bytes(head + b"tkhd" + track.replace(plain, turned, 1))
    assert torch.equal(media.read_clip(path).frames, lying.rot90(-1, (1, 2)))


# -------------------------------------------------------------------------------------------- masks


def disc(frames: int, height: int, width: int) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centers = torch.linspace(0.3, 0.7, frames) * width
    return torch.stack([(x - c) ** 2 + (y - height / 2) ** 2 < (height / 3) ** 2 for c in centers])


@pytest.mark.parametrize("suffix", TOLERANCE)
def test_a_mask_reads_back_without_noise(tmp_path: Path, suffix: str) -> None:
    mask = disc(5, 33, 47)
    back = media.read_mask(media.write_mask(tmp_path / f"mask{suffix}", mask))
    assert back.dtype == torch.bool
    assert (back != mask).float().mean() < 0.01
    far = ~torch.nn.functional.max_pool2d(mask.float(), 9, 1, 4).bool()
    assert not back[far].any()


@pytest.mark.parametrize(("level", "inside"), [(0, False), (1, False), (127, False), (128, True)])
def test_a_mask_is_binarised_above_127(tmp_path: Path, level: int, inside: bool) -> None:
    values = np.zeros((10, 12), dtype=np.uint8)
    values[:5], values[5, 0] = 255, level  # one pixel of a soft edge
    Image.fromarray(values).save(tmp_path / "mask.png")
    mask = media.read_mask(tmp_path / "mask.png")[0]
    assert mask[:5].all() and not mask[6:].any() and mask[5].tolist() == [inside] + 11 * [False]


def test_sixteen_bit_masks_are_scaled(tmp_path: Path) -> None:
    values = np.array([[0, 300, 32767, 33000, 65535] + 90 * [65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "mask.png")
    assert media.read_mask(tmp_path / "mask.png")[0, 0].tolist() == 3 * [False] + 92 * [True]


def painted(colour: tuple[int, ...], ground: np.ndarray) -> Image.Image:
    picture = ground.copy()
    picture[10:20, 12:30] = colour
    return Image.fromarray(picture)


PHOTOGRAPH = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
BLACK = np.zeros((40, 60, 3), dtype=np.uint8)
NOTHING = np.zeros((40, 60, 4), dtype=np.uint8)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (painted((255, 0, 0), PHOTOGRAPH), ["neither black nor white", "genhoi mask"]),
        (painted((255, 255, 255), PHOTOGRAPH), ["neither black nor white"]),
        (painted((255, 0, 0), BLACK), ["neither black nor white in 8 % of frame 0"]),
        (painted((100, 100, 100), BLACK), ["neither black nor white"]),
        (painted((1, 1, 1), BLACK), ["nothing brighter than 1 of 255", "by 255"]),
        (painted((40, 40, 40), BLACK), ["nothing brighter than 40 of 255"]),
    ],
    ids=["red-on-photo", "white-on-photo", "red-on-black", "grey-100", "0-and-1", "dark"],
)
def test_pictures_that_are_no_masks_are_refused(
    tmp_path: Path, image: Image.Image, words: list[str]
) -> None:
    image.save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match="want white where to generate") as refusal:
        media.read_mask(tmp_path / "mask.png")
    for word in words:
        assert word in str(refusal.value)


@pytest.mark.parametrize(
    "colour", [(255, 0, 0, 255), (255, 0, 0, 128), (0, 0, 0, 200), (9, 9, 9, 1)]
)
def test_a_transparent_layer_is_a_mask_whatever_its_colour(
    tmp_path: Path, colour: tuple[int, ...]
) -> None:
    painted(colour, NOTHING).save(tmp_path / "mask.png")
    mask = media.read_mask(tmp_path / "mask.png")[0]
    assert mask[10:20, 12:30].all() and mask.sum() == 180


def test_black_and_white_with_transparency_is_read_by_both(tmp_path: Path) -> None:
    layer = NOTHING.copy()
    layer[:, 10:, 3] = 255
    layer[:, 30:, :3] = 255
    layer[:, :5, :3] = 255  # transparent white
    Image.fromarray(layer).save(tmp_path / "mask.png")
    mask = media.read_mask(tmp_path / "mask.png")[0]
    assert mask[:, 30:].all() and not mask[:, :30].any()


@pytest.mark.parametrize("size", [(80, 45), (45, 80), (64, 64)])
def test_a_mask_of_another_shape_than_the_clip_is_refused(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    """4:3 clip; 16:9, standing and square masks belong to other frames."""
    image = Image.new("L", size, 255)
    image.save(tmp_path / "mask.png")
    clip = media.Clip(torch.zeros(5, 48, 64, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="another shape than the clip's 64x48"):
        media.read_mask(tmp_path / "mask.png", like=clip)


def test_a_single_mask_image_serves_every_frame_at_the_clips_size(tmp_path: Path) -> None:
    mask = disc(1, 64, 96)
    Image.fromarray(mask[0].numpy().astype(np.uint8) * 255).save(tmp_path / "mask.png")
    got = media.read_mask(tmp_path / "mask.png", like=smooth_clip(frames=6, height=32, width=48))
    assert got.shape == (6, 32, 48)
    assert (got == got[0]).all()
    assert got.float().mean().item() == pytest.approx(mask.float().mean().item(), abs=0.02)


def test_a_mask_of_another_length_is_refused_naming_both(tmp_path: Path) -> None:
    path = media.write_mask(tmp_path / "mask.mp4", disc(4, 32, 48))
    with pytest.raises(ValueError, match=r"mask\.mp4: has 4 frames, but the clip has 6"):
        media.read_mask(path, like=smooth_clip(frames=6))


# ------------------------------------------------------------------------------ images and resizing


def test_transparency_becomes_grey_128(tmp_path: Path) -> None:
    image = torch.zeros(4, 5, 4, dtype=torch.uint8)
    image[:2] = torch.tensor([200, 100, 50, 255], dtype=torch.uint8)
    back = media.read_image(media.write_image(tmp_path / "object.png", image))
    assert back[0, 0].tolist() == [200, 100, 50]
    assert back[3, 0].tolist() == [128, 128, 128]


def test_an_image_fits_with_its_aspect_on_grey() -> None:
    fitted = media.fit_image(torch.full((10, 40, 3), 250, dtype=torch.uint8), (32, 64))
    assert fitted.shape == (32, 64, 3)
    assert (fitted[:8] == 128).all() and (fitted[24:] == 128).all()
    assert (fitted[8:24] == 250).all()


@pytest.mark.parametrize("mode", ["crop", "exact"])
def test_clip_and_mask_are_resized_alike(mode: media.ResizeMode) -> None:
    mask = disc(2, 90, 130)
    clip = Clip((mask[..., None].expand(-1, -1, -1, 3) * 255).to(torch.uint8))
    small = media.resize_clip(clip, (48, 48), mode=mode)
    assert small.frames.shape == (2, 48, 48, 3)
    assert (
        (small.frames[..., 0] > 127) == media.resize_mask(mask, (48, 48), mode=mode)
    ).float().mean() > 0.97


def test_cropping_keeps_the_aspect() -> None:
    middle = media.resize_mask(disc(3, 64, 128), (32, 32))[1]
    rows, columns = int(middle.any(1).sum()), int(middle.any(0).sum())
    assert abs(rows - 21) <= 1
    assert abs(columns - rows) <= 1


@pytest.mark.parametrize("size", [(30, 32), (32, 0), (-16, 16)])
def test_sizes_must_be_multiples_of_16(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"size: got .* positive multiples of 16"):
        media.resize_clip(smooth_clip(), size)


# ----------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "read", [media.read_clip, media.read_mask, media.read_image, media.count_frames]
)
def test_a_missing_file_is_named(tmp_path: Path, read) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(FileNotFoundError, match=r"nowhere\.mp4"):
        read(tmp_path / "nowhere.mp4")


@pytest.mark.parametrize("name", ["broken.mp4", "broken.png"])
def test_an_unreadable_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"neither a video nor an image")
    with pytest.raises(ValueError, match=name):
        media.read_clip(tmp_path / name)


def test_an_empty_folder_and_mixed_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a folder without images"):
        media.read_clip(tmp_path)
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    Image.new("RGB", (6, 8)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"b\.png: 6x8 pixels, want 8x6 pixels like a\.png"):
        media.read_clip(tmp_path)


def test_unknown_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.mp4, \.webm or \.gif"):
        media.write_clip(tmp_path / "clip.xyz", smooth_clip())
    with pytest.raises(ValueError, match=r"ending in"):
        media.write_image(tmp_path / "image.xyz", torch.zeros(2, 2, 3, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("frames", "fps", "error", "words"),
    [
        (torch.zeros(2, 4, 4, 3), 24, TypeError, "frames: got torch.float32"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), 24, ValueError, "frames: got shape"),
        (torch.zeros(0, 4, 4, 3, dtype=torch.uint8), 24, ValueError, "frames: got shape"),
        (torch.zeros(2, 4, 4, 3, dtype=torch.uint8), 0, ValueError, "fps: got 0"),
        (torch.zeros(2, 4, 4, 3, dtype=torch.uint8), float("nan"), ValueError, "fps: got nan"),
    ],
)
def test_clips_check_what_they_are_made_of(
    frames: torch.Tensor, fps: float, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        Clip(frames, fps)


# ---------------------------------------------------------------------------------------- atomicity


@pytest.mark.parametrize("suffix", TOLERANCE)
def test_nothing_is_overwritten_unasked(tmp_path: Path, suffix: str) -> None:
    path = media.write_clip(tmp_path / f"clip{suffix}", smooth_clip(frames=5))
    with pytest.raises(FileExistsError, match="exists already"):
        media.write_clip(path, smooth_clip(frames=2))
    assert media.count_frames(path) == 5
    media.write_clip(path, smooth_clip(frames=2), overwrite=True)
    assert media.count_frames(path) == 2
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", TOLERANCE)
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, error: BaseException
) -> None:
    clip = smooth_clip()

    def fail_at_the_third(frames: torch.Tensor):  # type: ignore[no-untyped-def]
        yield frames[0]
        yield frames[1]
        raise error

    monkeypatch.setattr(torch.Tensor, "__iter__", fail_at_the_third)
    with pytest.raises(type(error)):
        media.write_clip(tmp_path / f"clip{suffix}", clip)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_overwrite_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "numbers.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), media.atomic_path(path, overwrite=True) as temporary:
        temporary.write_text("half")
        raise RuntimeError("interrupted")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["numbers.txt"]


def test_a_folder_with_other_things_in_it_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"thesis\.tex"):
        media.write_clip(tmp_path / "mine", smooth_clip(), overwrite=True)
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file, want a folder"):
        media.check_target(tmp_path / "file" / "clip.mp4")


def test_only_videos_need_pyav(tmp_path: Path) -> None:
    """Without it the package imports, and a video is refused in words."""
    (tmp_path / "clip.mp4").write_bytes(b"0")
    code = (
        "import sys; sys.modules['av'] = None\n"
        "import genhoi\n"
        f"try: genhoi.read_clip({str(tmp_path / 'clip.mp4')!r})\n"
        "except ImportError as error: print(error)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    sentence = "reading and writing videos needs av (pip install 'genhoi-kernels[video]')"
    assert finished.stdout.strip() == sentence


def test_clips_side_by_side(tmp_path: Path) -> None:
    left, right = (
        media.Clip(torch.full((5, 32, 48, 3), value, dtype=torch.uint8), 12) for value in (40, 200)
    )
    path = media.write_side_by_side(tmp_path / "both.mp4", left, right)
    both = media.read_clip(path)
    assert both.frames.shape == (5, 32, 96, 3) and both.fps == 12
    assert (both.frames[:, :, :44].float() - 40).abs().max() < 6
    assert (both.frames[:, :, 52:].float() - 200).abs().max() < 6
    with pytest.raises(ValueError, match=r"right: got .* as left"):
        media.write_side_by_side(tmp_path / "x.mp4", left, media.Clip(right.frames[:3], 12))
    with pytest.raises(ValueError, match=r"ending in \.mp4 or \.webm"):
        media.write_side_by_side(tmp_path / "x.gif", left, right)
