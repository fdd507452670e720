"""Clips in folders and CSV files: what is found, what is read, and what is said of the rest."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from genhoi import media
from genhoi.data.clip_dataset import ClipDataset
from genhoi.data.folders import SWAP_COLUMNS, ClipFiles, Columns, find_clips
from genhoi.data.sample import HOIDataset

SIZE = (32, 48)


def frames(count: int, *, size: tuple[int, int] = SIZE, seed: int = 0) -> torch.Tensor:
    """Noise: no two frames are alike."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *size, 3), dtype=torch.uint8, generator=generator)


def boxes(count: int, *, size: tuple[int, int] = SIZE) -> torch.Tensor:
    """A box that is largest in the frame before the last."""
    mask = torch.zeros(count, *size, dtype=torch.bool)
    for i in range(count):
        mask[i, 8 : 12 + i, 16:32] = True
    mask[-1] = False
    return mask


def make_clip(folder: Path, count: int = 9, *, seed: int = 0, picture: bool = True) -> torch.Tensor:
    """Write video, mask and object as PNG files, so that pixels come back as they are."""
    made = frames(count, seed=seed)
    media.write_clip(folder / "video", media.Clip(made))
    media.write_mask(folder / "mask", boxes(count))
    if picture:
        media.write_image(folder / "object.png", made[0, :20, :10].contiguous())
    return made


def write_csv(path: Path, *rows: dict[str, str]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path


# ------------------------------------------------------------------------------------------ folders


def test_a_folder_of_clips(tmp_path: Path) -> None:
    made = {name: make_clip(tmp_path / name, seed=i) for i, name in enumerate(("b", "a"))}
    (tmp_path / "a" / "prompt.txt").write_text("a hand holds a múg\n", encoding="utf-8")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "README").write_text("not a clip")
    dataset: HOIDataset = ClipDataset(find_clips(tmp_path))
    assert len(dataset) == 2
    for sample, name in zip(dataset, ("a", "b"), strict=True):
        assert sample.name == name
        assert torch.equal(sample.clip.frames, made[name])
        assert torch.equal(sample.mask, boxes(9))
        assert torch.equal(sample.object, made[name][0, :20, :10])
        assert sample.object_mask is None
        assert sample.prompt == ("a hand holds a múg" if name == "a" else "")


def test_a_single_clip_of_videos(tmp_path: Path) -> None:
    """The names that the synthetic clips are written under, and an object's mask."""
    folder = tmp_path / "cup"
    media.write_clip(folder / "video.mp4", media.Clip(frames(9), 12))
    for name in ("mask.mp4", "object_mask.mp4"):
        media.write_mask(folder / name, boxes(9))
    rgba = torch.zeros(8, 8, 4, dtype=torch.uint8)
    media.write_image(folder / "object.png", rgba)
    (sample,) = ClipDataset(find_clips(folder), frames=5)
    assert sample.name == "cup" and sample.clip.fps == 12
    assert sample.clip.frames.shape == (5, *SIZE, 3)
    assert sample.object_mask is not None and torch.equal(sample.object_mask, sample.mask)
    assert (sample.object == 128).all()


def test_the_clip_that_shows_the_object_wins(tmp_path: Path) -> None:
    make_clip(tmp_path)
    (tmp_path / "video").rename(tmp_path / "source")
    edited = frames(9, seed=1)
    media.write_clip(tmp_path / "target", media.Clip(edited))
    (clip,) = find_clips(tmp_path)
    dataset = ClipDataset([clip])
    assert torch.equal(dataset[0].clip.frames, edited)
    assert any("target is the clip, source not read" in note for note in dataset.notes)
    (clip,) = find_clips(tmp_path, video_names=("source",))
    assert clip.video.name == "source" and not clip.note


def test_two_files_of_a_name_are_refused(tmp_path: Path) -> None:
    make_clip(tmp_path)
    media.write_mask(tmp_path / "mask.mp4", boxes(9))
    with pytest.raises(ValueError, match=r"got mask, mask.mp4, want only one called mask"):
        find_clips(tmp_path)


def test_all_that_is_missing_is_named_at_once(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        make_clip(tmp_path / name, picture=name != "c")
    (tmp_path / "d").mkdir()
    for gone in (tmp_path / "a" / "mask", tmp_path / "b" / "video"):
        gone.rename(gone.with_name("elsewhere"))
    with pytest.raises(FileNotFoundError, match="4 files are missing") as caught:
        ClipDataset(find_clips(tmp_path))
    for fault in ("a: mask: ", "b: video: ", "d: video: ", "d: mask: ", "c: no picture"):
        assert f"  {fault}" in str(caught.value)


def test_folders_that_hold_no_clip(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="path: there is no file or folder"):
        find_clips(tmp_path / "nothing")
    with pytest.raises(ValueError, match="neither video, target, source or mask"):
        find_clips(tmp_path)
    (tmp_path / "clips.json").write_text("{}")
    with pytest.raises(ValueError, match=r"want a folder or a .csv file"):
        find_clips(tmp_path / "clips.json")
    with pytest.raises(ValueError, match=r"they are for a .csv file"):
        find_clips(tmp_path, root=tmp_path)
    with pytest.raises(ValueError, match="video_names: got none"):
        find_clips(tmp_path, video_names=())


# --------------------------------------------------------------------------------------- CSV files


def test_plain_columns(tmp_path: Path) -> None:
    made = make_clip(tmp_path / "clips" / "a")
    path = write_csv(
        tmp_path / "clips.csv",
        {"video": "clips/a/video", "mask": "clips/a/mask", "prompt": "one, two", "object": ""},
        {"video": str(tmp_path / "clips/a/video"), "mask": "clips/a/mask"},
    )
    clips = find_clips(path)
    assert clips[0].name == "clips_a_video" and clips[0].prompt == "one, two"
    assert "/" not in clips[1].name and clips[1].prompt == ""
    dataset = ClipDataset(clips, object_from_mask=True)
    assert all(torch.equal(sample.clip.frames, made) for sample in dataset)


def test_the_swap_columns_of_the_release(tmp_path: Path) -> None:
    made = make_clip(tmp_path / "demo" / "10")
    row = {
        "video_path": "demo/10/video",
        "obj_mask_path": "demo/10/mask",
        "input_path": "demo/10/never_read.mp4",
        "ref_img": "demo/10/object.png",
    }
    path = write_csv(tmp_path / "demo" / "demo.csv", row)
    with pytest.raises(FileNotFoundError, match="3 files are missing"):
        ClipDataset(find_clips(path))
    (sample,) = ClipDataset(find_clips(path, root=tmp_path))
    assert torch.equal(sample.object, made[0, :20, :10])
    clips = find_clips(path, root=tmp_path, columns=replace(SWAP_COLUMNS, object=None))
    (sample,) = ClipDataset(clips, object_from_mask=True)
    assert sample.object.shape == (11, 16, 3)


def test_the_self_swap_columns_of_the_release(tmp_path: Path) -> None:
    """The first picture of a folder, cut out with the first mask of another, on grey."""
    make_clip(tmp_path)
    pictures = frames(3, size=(24, 24), seed=2)
    inside = torch.zeros(3, 24, 24, dtype=torch.bool)
    inside[0, 4:10, 3:20] = True
    inside[0, 4, 3] = False
    inside[1:] = True
    media.write_clip(tmp_path / "pictures", media.Clip(pictures))
    media.write_mask(tmp_path / "cutouts", inside)
    row = {
        "video_path": "video",
        "obj_path": "pictures",
        "mask_path": "cutouts",
        "obj_mask_path": "mask",
    }
    (sample,) = ClipDataset(find_clips(write_csv(tmp_path / "selfswap.csv", row)))
    assert torch.equal(sample.mask, boxes(9))
    want = pictures[0, 4:10, 3:20].clone()
    want[0, 0] = 128
    assert torch.equal(sample.object, want)


def test_other_columns(tmp_path: Path) -> None:
    make_clip(tmp_path)
    row = {"src_video": "video", "src_mask": "mask", "src_ref_images": "object.png", "id": "one"}
    path = write_csv(tmp_path / "other.csv", row)
    with pytest.raises(ValueError, match="fits 0 known layouts"):
        find_clips(path)
    columns = Columns(video="src_video", mask="src_mask", object="src_ref_images", name="id")
    (sample,) = ClipDataset(find_clips(path, columns=columns))
    assert sample.name == "one"
    with pytest.raises(ValueError, match="has no caption; it has"):
        find_clips(path, columns=replace(columns, prompt="caption"))


def test_faults_of_a_csv_are_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "clips.csv"
    path.write_text("video,mask,prompt\na,,x\nb,m,one,two\n,m,y\n")
    with pytest.raises(ValueError, match="3 faults") as caught:
        find_clips(path)
    for fault in ("line 2: no mask", "line 3: more cells than columns", "line 4: no video"):
        assert fault in str(caught.value)
    path.write_text("video,mask\n")
    with pytest.raises(ValueError, match="a header without a row"):
        find_clips(path)
    path.write_text("video,mask,video_path,obj_mask_path,ref_img\na,b,c,d,e\n")
    with pytest.raises(ValueError, match="fits 2 known layouts"):
        find_clips(path)


def test_a_video_listed_twice_gets_two_names(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "clips.csv", *[{"video": "a.mp4", "mask": "m.png"}] * 2)
    assert [c.name for c in find_clips(path)] == ["a_line2", "a_line3"]
    clip = find_clips(path)[0]
    with pytest.raises(ValueError, match="got a_line2 more than once"):
        ClipDataset([clip, clip])


# -------------------------------------------------------------------------------- lengths and sizes


def test_windows(tmp_path: Path) -> None:
    made = {name: make_clip(tmp_path / name, n) for name, n in (("a", 12), ("b", 4), ("c", 5))}
    first = ClipDataset(find_clips(tmp_path), frames=5)
    assert [sample.name for sample in first] == ["a", "c"]
    assert "a: the first 5 of 12 frames, 7 cut." in first.notes
    assert "b: left out, 4 frames where 5 are wanted." in first.notes
    every = ClipDataset(find_clips(tmp_path), frames=5, windows="all")
    assert [sample.name for sample in every] == ["a_00000", "a_00005", "c_00000"]
    assert torch.equal(every[1].clip.frames, made["a"][5:10])
    assert torch.equal(every[1].mask, boxes(12)[5:10])
    assert "a: the first 10 of 12 frames, 2 cut." in every.notes
    whole = ClipDataset(find_clips(tmp_path))
    assert [sample.clip.num_frames for sample in whole] == [9, 5]
    with pytest.raises(ValueError, match=r"got none that is long enough:\n.*12 frames where 13"):
        ClipDataset(find_clips(tmp_path), frames=13)


def test_nothing_is_decoded_before_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        make_clip(tmp_path / name, 10)
    read: list[Path] = []

    def reading(path: Path, *, max_frames: int | None = None) -> media.Clip:
        read.append(path)
        return media.read_clip(path, max_frames=max_frames)

    monkeypatch.setattr("genhoi.data.clip_decoding.read_clip", reading)
    dataset = ClipDataset(find_clips(tmp_path), frames=5, windows="all")
    assert len(dataset) == 4 and not read
    first = list(dataset)
    assert len(read) == 2  # once a clip, not once a window
    first[0].clip.frames.zero_()
    assert dataset[0].clip.frames.any() and len(read) == 3
    assert dataset[0].clip.frames.any() and len(read) == 3  # what a caller writes is not kept


@pytest.mark.parametrize("role", ["mask", "object_mask"])
def test_masks_of_another_length_are_all_named(tmp_path: Path, role: str) -> None:
    for name in ("a", "b"):
        make_clip(tmp_path / name)
    long, broken = tmp_path / "long", tmp_path / "broken.mp4"
    media.write_mask(long, boxes(10))
    broken.write_bytes(b"no video")
    clips = [
        replace(clip, **{role: path})  # type: ignore[arg-type]
        for clip, path in zip(find_clips(tmp_path)[:2], (long, broken), strict=True)
    ]
    with pytest.raises(ValueError, match="2 files do not fit") as caught:
        ClipDataset(clips)
    assert f"a: {role}: {long} has 10 frames, want 9 like video" in str(caught.value)
    assert f"b: {broken}: not a video that can be read" in str(caught.value)


def test_a_single_mask_is_for_all_frames(tmp_path: Path) -> None:
    make_clip(tmp_path)
    (clip,) = find_clips(tmp_path)
    (sample,) = ClipDataset([replace(clip, mask=tmp_path / "mask" / "00003.png")])
    assert torch.equal(sample.mask, boxes(9)[3].expand(9, -1, -1))


def test_sizes(tmp_path: Path) -> None:
    make_clip(tmp_path)
    clips = find_clips(tmp_path)
    dataset = ClipDataset(clips, size=(48, 16))
    sample = dataset[0]
    want = media.resize_clip(media.read_clip(tmp_path / "video"), (48, 16))
    assert torch.equal(sample.clip.frames, want.frames)
    assert torch.equal(sample.mask, media.resize_mask(boxes(9), (48, 16)))
    assert any("Size: 16x48" in note for note in dataset.notes)
    assert any("of the mask cut off with the sides" in note for note in dataset.notes)
    exact = ClipDataset(clips, size=(48, 16), resize="exact")
    assert exact[0].mask[0].sum() > 0 and not any("cut off" in note for note in exact.notes)


def test_sides_are_rounded_down_to_whole_tokens(tmp_path: Path) -> None:
    media.write_clip(tmp_path / "video", media.Clip(frames(5, size=(40, 50))))
    media.write_mask(tmp_path / "mask", boxes(5, size=(20, 25)))
    (sample,) = ClipDataset(find_clips(tmp_path), object_from_mask=True)
    assert sample.clip.frames.shape == (5, 32, 48, 3) and sample.mask.shape == (5, 32, 48)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"frames": 8}, "frames: got 8, want 1 \\+ 4 n"),
        ({"frames": 1}, "frames: got 1, want 1 \\+ 4 n"),
        ({"size": (30, 48)}, "size: got \\(30, 48\\), want \\(height, width\\)"),
        ({"windows": "last"}, "windows: got 'last'"),
        ({"resize": "pad"}, "resize: got 'pad'"),
        ({"cache": -1}, "cache: got -1"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ClipDataset([], **options)  # type: ignore[arg-type]


def test_indices_beyond_the_ends(tmp_path: Path) -> None:
    make_clip(tmp_path)
    dataset = ClipDataset(find_clips(tmp_path))
    for index in (-1, 1):
        with pytest.raises(IndexError, match=f"index: got {index}, want 0 to 0"):
            dataset[index]


# --------------------------------------------------------------------------- the object cut from it


def test_the_object_is_cut_from_the_frame_that_shows_most_of_it(tmp_path: Path) -> None:
    made = make_clip(tmp_path, picture=False)
    clips = find_clips(tmp_path)
    with pytest.raises(ValueError, match="no picture of the object"):
        ClipDataset(clips)
    dataset = ClipDataset(clips, object_from_mask=True)
    assert torch.equal(dataset[0].object, made[7, 8:19, 16:32])
    assert any("picture is cut out of the clip" in note for note in dataset.notes)
    # Of the frames that samples have, and with the object's own mask where there is one.
    assert torch.equal(
        ClipDataset(clips, frames=5, object_from_mask=True)[0].object, made[4, 8:16, 16:32]
    )
    own = torch.zeros(9, *SIZE, dtype=torch.bool)
    own[2:4, 3, 5] = own[2:4, 5, 8] = True
    media.write_mask(tmp_path / "object_mask", own)
    (sample,) = ClipDataset(find_clips(tmp_path), object_from_mask=True)
    want = torch.full((3, 4, 3), 128, dtype=torch.uint8)
    want[0, 0], want[2, 3] = made[2, 3, 5], made[2, 5, 8]
    assert torch.equal(sample.object, want)


def test_an_empty_mask(tmp_path: Path) -> None:
    make_clip(tmp_path)
    media.write_mask(tmp_path / "none", torch.zeros(9, *SIZE, dtype=torch.bool))
    (clip,) = find_clips(tmp_path)
    clip = replace(clip, mask=tmp_path / "none")
    dataset = ClipDataset([clip])
    assert not dataset[0].mask.any()
    assert any("the mask is empty" in note for note in dataset.notes)
    with pytest.raises(ValueError, match="none: empty where the object is to be cut out"):
        ClipDataset([replace(clip, object=None)], object_from_mask=True)[0]


# ---------------------------------------------------------------------------------------- real data


@pytest.mark.shared
def test_a_real_clip(shared: Path) -> None:
    """The edited clip, whose camera is the picture's: black on black, unlike the tablet."""
    folder = shared / "data" / "hoi_clip"
    if not folder.is_dir():
        pytest.skip(f"no clip at {folder}")
    (clip,) = find_clips(folder)
    assert isinstance(clip, ClipFiles) and clip.video.name == "target.mp4"
    dataset = ClipDataset([clip], frames=9, size=(96, 160))
    (sample,) = dataset
    assert sample.clip.frames.shape == (9, 96, 160, 3)
    assert 0.03 < sample.mask.float().mean() < 0.16
    assert len(dataset.notes) == 3  # source.mp4 not read, frames cut, size
    (from_mask,) = ClipDataset([replace(clip, object=None)], frames=9, object_from_mask=True)
    assert (
        min(from_mask.object.shape[:2]) > 32
        and (from_mask.object == 128).all(-1).float().mean() < 0.6
    )
