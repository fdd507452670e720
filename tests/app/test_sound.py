"""A clip's sound stays with it: copied where the container takes it, else encoded."""

from __future__ import annotations

from pathlib import Path

import av
import pytest
import torch
from support.sound import add_sound, sound_packets

from genhoi import media
from genhoi.media import Clip


def clip(frames: int = 24) -> Clip:
    return Clip(torch.randint(0, 256, (frames, 32, 48, 3), dtype=torch.uint8), 24)


def loud(folder: Path, codec: str, suffix: str) -> Path:
    media.write_clip(folder / "quiet.mp4", clip())
    return add_sound(folder / "quiet.mp4", folder / f"loud{suffix}", codec=codec)


def codec_of(path: Path) -> str:
    with av.open(str(path)) as container:
        return str(container.streams.audio[0].codec_context.name)


@pytest.mark.parametrize("codec, suffix", [("aac", ".mp4"), ("libopus", ".mkv"), ("flac", ".mkv")])
def test_sound_is_copied_without_loss(tmp_path: Path, codec: str, suffix: str) -> None:
    source = loud(tmp_path, codec, suffix)
    assert media.has_sound(source)
    out = media.write_clip(tmp_path / "out.mp4", clip(), sound=source)
    wanted, got = sound_packets(source), sound_packets(out)
    assert [data for _, data in got] == [data for _, data in wanted] and len(got) > 9
    for (a, _), (b, _) in zip(got, wanted, strict=True):
        assert a == pytest.approx(b, abs=2e-3)
    assert media.read_clip(out).num_frames == 24


@pytest.mark.parametrize(
    "codec, suffix, out, wanted",
    [("pcm_s16le", ".mov", ".mp4", "aac"), ("aac", ".mp4", ".webm", "opus")],
)
def test_what_a_container_cannot_take_is_encoded(
    tmp_path: Path, codec: str, suffix: str, out: str, wanted: str
) -> None:
    source = loud(tmp_path, codec, suffix)
    target = media.write_clip(tmp_path / f"out{out}", clip(), sound=source)
    assert wanted in codec_of(target)
    with av.open(str(target)) as container:
        samples = sum(frame.samples for frame in container.decode(audio=0))
    assert samples / 48000 == pytest.approx(1.0, abs=0.1), "as long as the pictures"


def test_sound_ends_with_a_shorter_clip(tmp_path: Path) -> None:
    source = loud(tmp_path, "aac", ".mp4")
    target = media.write_clip(tmp_path / "out.mp4", clip(12), sound=source)
    assert sound_packets(target)[-1][0] < 0.5 and len(sound_packets(target)) > 15


def test_a_source_without_sound_gives_none(tmp_path: Path) -> None:
    quiet = media.write_clip(tmp_path / "quiet.mp4", clip())
    target = media.write_clip(tmp_path / "out.mp4", clip(), sound=quiet)
    assert not media.has_sound(quiet) and not media.has_sound(target)
    media.write_clip(tmp_path / "frames", clip(3))
    assert not media.has_sound(tmp_path / "frames")


@pytest.mark.parametrize("name", ["out.gif", "out"])
def test_sound_is_not_dropped_silently(tmp_path: Path, name: str) -> None:
    source = loud(tmp_path, "aac", ".mp4")
    with pytest.raises(ValueError, match=r"sound: got .* which holds none"):
        media.write_clip(tmp_path / name, clip(), sound=source)
