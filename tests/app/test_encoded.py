"""Datasets that are encoded once: what is stored, when it is taken again, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from threading import Thread

import pytest
import torch
from support.tiny_training import CLIPS, FRAMES, Noise, small_base
from test_folders import make_clip

from genhoi.conditioning.condition import build_condition
from genhoi.data.clip_dataset import ClipDataset
from genhoi.data.encoded import EncodedClips, encode_dataset
from genhoi.data.folders import find_clips
from genhoi.data.sample import HOIDataset, HOISample
from genhoi.media.media import fit_image


def test_what_is_stored(tmp_path: Path) -> None:
    base, dataset, calls = small_base(), Noise(), []
    clips = encode_dataset(
        base, dataset, tmp_path / "latents", given=("none", "first", "first_last"),
        progress=lambda done, total: calls.append((done, total)),
    )  # fmt: skip
    assert calls == [(i + 1, CLIPS) for i in range(CLIPS)]
    assert clips.names == [f"noise-{i}" for i in range(CLIPS)] and len(clips) == CLIPS
    for i, sample in enumerate(dataset):
        frames = sample.clip.frames

        def stored(name: str, index: int = i) -> torch.Tensor:
            return clips.take(name, [index])[0]

        assert torch.equal(stored("clean"), base.encode(frames)[0].half().float())
        picture = fit_image(sample.object, (frames.shape[1], frames.shape[2]))
        assert torch.equal(stored("object"), base.encode(picture[None])[0].half().float())
        for name, first, last in (
            ("none", None, None), ("first", frames[0], None), ("first_last", frames[0], frames[-1]),
        ):  # fmt: skip
            condition = build_condition(
                frames, sample.mask, base.encode, first_frame=first, last_frame=last
            )
            assert torch.equal(stored(f"condition_{name}"), condition.channels[0].half().float())
    assert clips.texts([0, 3]).shape == (2, 1, 8)
    with pytest.raises(ValueError, match=r"latents: got no image_none, wanted .*clean"):
        clips.take("image_none", [0])


def test_another_process_reads_the_same(tmp_path: Path) -> None:
    base = small_base()
    one = encode_dataset(base, Noise(3), tmp_path / "one", given=("none",))
    two = encode_dataset(base, Noise(3), tmp_path / "two", given=("none",), workers=1)
    assert one.names == two.names
    for name in ("clean", "object", "condition_none"):
        assert torch.equal(one.take(name, range(3)), two.take(name, range(3)))


def test_two_programs_at_once(tmp_path: Path) -> None:
    """The second waits, and takes what the first has made."""
    base, calls = small_base(), []

    def second() -> None:
        encode_dataset(base, Noise(3), tmp_path / "latents", given=("none",),
                       progress=lambda *_: calls.append("second"))  # fmt: skip

    other = Thread(target=second)

    def show(done: int, total: int) -> None:
        calls.append("first")
        if done == 1:
            other.start()
            other.join(timeout=0.5)
            assert other.is_alive()

    encode_dataset(base, Noise(3), tmp_path / "latents", given=("none",), progress=show)
    other.join(timeout=30)
    assert not other.is_alive() and calls == ["first"] * 3


class Unreadable(Noise):
    """Any sample asked of it is a mistake."""

    def __getitem__(self, index: int) -> HOISample:
        raise AssertionError("encoded again")


def test_taken_again(tmp_path: Path) -> None:
    """Where it is the same, or has more conditions; other data or fewer conditions are refused."""
    base, folder = small_base(), tmp_path / "latents"
    encode_dataset(base, Noise(), folder, given=("first", "none"))
    for given in (("none", "first"), ("none",), ("first",)):
        assert len(encode_dataset(base, Unreadable(), folder, given=given)) == CLIPS  # type: ignore[arg-type]
    for dataset, given in ((Unreadable(4), ("none",)), (Unreadable(), ("none", "first_last"))):
        with pytest.raises(FileExistsError, match=r"latents: .*name another folder"):
            encode_dataset(base, dataset, folder, given=given)  # type: ignore[arg-type]
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"version": 0}))
    with pytest.raises(ValueError, match=r"version 0, wanted 1; encode anew"):
        EncodedClips(folder)
    with pytest.raises(FileNotFoundError, match="latents"):
        EncodedClips(tmp_path)


class Failing(Noise):
    """Ends like a program that is stopped, or with another size."""

    def __init__(self, fault: str) -> None:
        super().__init__(3)
        self.fault = fault

    def __getitem__(self, index: int) -> HOISample:
        if index == 2:
            if self.fault == "stopped":
                raise KeyboardInterrupt
            return Noise(3, side=48)[index]
        return super().__getitem__(index)


def test_whole_or_absent(tmp_path: Path) -> None:
    base = small_base()
    with pytest.raises(KeyboardInterrupt):
        encode_dataset(base, Failing("stopped"), tmp_path / "latents", given=("none",))
    with pytest.raises(ValueError, match=r"noise-2 gives clean of shape .*one size"):
        encode_dataset(base, Failing("larger"), tmp_path / "latents", given=("none",))
    with pytest.raises(ValueError, match="dataset: got no sample"):
        encode_dataset(base, Noise(0), tmp_path / "latents", given=("none",))
    assert [path.name for path in tmp_path.iterdir()] == [".latents.lock"]
    killed = tmp_path / ".latents.12ab.unfinished"
    killed.mkdir()
    encode_dataset(base, Noise(1), tmp_path / "latents", given=("none",))
    assert {path.name for path in tmp_path.iterdir()} == {"latents", ".latents.lock"}


def test_fingerprint_of_clips_in_folders(tmp_path: Path) -> None:
    """The files and every option count; where it was asked for does not."""
    for i, name in enumerate(("a", "b")):
        make_clip(tmp_path / name, FRAMES, seed=i)

    def fingerprint(**options: object) -> str:
        values: dict[str, object] = {"frames": 5, "size": (32, 32), **options}
        dataset: HOIDataset = ClipDataset(find_clips(tmp_path), **values)  # type: ignore[arg-type]
        return dataset.fingerprint()

    first = fingerprint()
    assert fingerprint() == first
    others = [
        fingerprint(frames=9), fingerprint(size=(16, 32)), fingerprint(resize="exact"),
        fingerprint(windows="all", frames=None),
    ]  # fmt: skip
    assert len({first, *others}) == 5
    frame = next((tmp_path / "a" / "mask").iterdir())
    os.utime(frame, ns=(1, 1))
    touched = fingerprint()
    assert touched != first
    (tmp_path / "a" / "prompt.txt").write_text("a hand")
    assert fingerprint() != touched
