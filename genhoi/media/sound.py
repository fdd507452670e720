"""The sound of one video, written along with the frames of another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

from genhoi.media.containers import open_video, pyav
from genhoi.media.files import IMAGE_SUFFIXES

__all__ = ["copied_sound", "has_sound"]

# What each container takes as it is. All else, such as a camera's raw samples, is encoded.
_COPIED = {
    "mp4": {"aac", "mp3", "ac3", "eac3", "alac", "opus", "flac"},
    "webm": {"opus", "vorbis"},
}
_ENCODED = {"mp4": "aac", "webm": "libopus"}
_OPUS_RATE = 48000

CopyUntil = Callable[[Fraction | None], None]


def has_sound(path: Path) -> bool:
    """Tell whether a file is a video with sound."""
    if not path.is_file() or path.suffix.lower() in IMAGE_SUFFIXES:
        return False
    with open_video(path) as container:
        return bool(container.streams.audio)


@contextmanager
def copied_sound(source: Path | None, target: Any, length: Fraction) -> Iterator[CopyUntil]:
    """Give a function that writes sound up to a time, in seconds; all that is left for None.

    The sound keeps its place against the pictures. It is copied without loss where the target's
    format takes it, else encoded.

    Args:
        source: a file with sound; one without, and None, give nothing.
        target: an open container, whose streams can still be added.
        length: of the target's pictures, in seconds; the sound ends there.
    """
    if source is None or not has_sound(source):
        yield lambda until: None
        return
    with open_video(source) as container:
        packets = _packets(container, target, length)
        following = next(packets, None)

        def copy_until(until: Fraction | None) -> None:
            nonlocal following
            while following is not None and (until is None or following[0] <= until):
                target.mux(following[1])
                following = next(packets, None)

        yield copy_until


def _packets(container: Any, target: Any, length: Fraction) -> Iterator[tuple[Fraction, Any]]:
    """Make the packets of the target's stream, each with its time in seconds.

    The stream is added at once, before the first packet is asked for.
    """
    sound, name = container.streams.audio[0], target.format.name
    begin = _begin(container.streams.video[0])
    if sound.codec_context.name in _COPIED[name]:
        stream = target.add_stream_from_template(sound)
        return _copies(container, sound, stream, begin, length)
    stream = target.add_stream(_ENCODED[name], rate=_rate(name, sound))
    return _encodings(container, sound, stream, begin, length)


def _begin(video: Any) -> Fraction:
    """Return the time of the first picture, in seconds."""
    return Fraction(0) if video.start_time is None else video.start_time * video.time_base


def _rate(name: str, sound: Any) -> int:
    return _OPUS_RATE if name == "webm" else int(sound.codec_context.sample_rate)


def _copies(
    container: Any, sound: Any, stream: Any, begin: Fraction, length: Fraction
) -> Iterator[tuple[Fraction, Any]]:
    offset = round(begin / sound.time_base)
    for packet in container.demux(sound):
        if packet.pts is None:  # the end
            continue
        time = packet.pts * packet.time_base - begin
        if time >= length:
            return
        packet.pts -= offset
        packet.dts = packet.pts if packet.dts is None else packet.dts - offset
        packet.stream = stream
        yield time, packet


def _encodings(
    container: Any, sound: Any, stream: Any, begin: Fraction, length: Fraction
) -> Iterator[tuple[Fraction, Any]]:
    rate = stream.codec_context.sample_rate
    resampler = pyav().AudioResampler(
        format=stream.codec_context.format, layout=sound.codec_context.layout, rate=rate
    )
    done: int | None = None
    for frame in container.decode(sound):
        time = Fraction(0) if frame.pts is None else frame.pts * frame.time_base - begin
        if done is None:
            done = max(0, round(time * rate))
        if frame.pts is not None and time >= length:
            break
        for part in resampler.resample(frame):
            part.pts, part.time_base = done, Fraction(1, rate)
            done += part.samples
            for packet in stream.encode(part):
                yield packet.pts * packet.time_base, packet
    for packet in stream.encode(None):
        yield packet.pts * packet.time_base, packet
