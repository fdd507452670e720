"""Videos and GIFs, decoded and encoded by PyAV."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from genhoi.media.clip import DEFAULT_FPS, Clip
from genhoi.media.containers import open_video, pyav
from genhoi.media.sound import copied_sound

__all__ = ["MAX_GIF_FPS", "count_packets", "decode", "frame_rate", "write_gif", "write_video"]

MAX_GIF_FPS = 50

_BT709 = 1


def frame_rate(path: Path) -> Fraction:
    """Read frames a second: a video's average rate, or 24 where it does not tell."""
    with open_video(path) as container:
        stream = container.streams.video[0]
        rate = stream.average_rate or stream.guessed_rate or DEFAULT_FPS
        if container.format.name == "gif" and stream.duration:
            # A GIF's delays are whole hundredths of a second: only their sum tells the rate.
            rate = count_packets(path) / (stream.duration * stream.time_base)
    return Fraction(rate)


def count_packets(path: Path) -> int:
    """Count a video's frames without decoding them.

    Raises:
        ValueError: it is not readable.
    """
    with open_video(path) as container:
        try:
            return sum(packet.size > 0 for packet in container.demux(video=0))
        except pyav().FFmpegError as error:
            raise ValueError(f"{path}: cannot read this video to its end: {error}") from error


def decode(path: Path, max_frames: int | None) -> Iterator[np.ndarray]:
    """Yield a video's frames as uint8 [H, W, 3], at least one.

    Args:
        path: of the video.
        max_frames: stop after so many.

    Raises:
        ValueError: it is not readable, or holds no frame.
    """
    count = 0
    with open_video(path) as container:
        container.streams.video[0].thread_type = "AUTO"
        try:
            for frame in container.decode(video=0):
                if count == max_frames:
                    return
                turns = round(frame.rotation / 90)
                yield np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))
                count += 1
        except pyav().FFmpegError as error:
            raise ValueError(f"{path}: broken after {count} frames ({error})") from error
    if count == 0:
        raise ValueError(f"{path}: holds no frame")


def write_video(path: Path, *clips: Clip, sound: Path | None = None) -> None:
    """Write an .mp4 (H.264) or .webm (VP9); the suffix chooses.

    Args:
        path: the target.
        clips: of one length, height and rate; several stand beside each other.
        sound: a file whose sound goes with them.
    """
    clip, width = clips[0], sum(clip.width for clip in clips)
    webm = path.suffix.lower() == ".webm"
    codec, options = (
        ("libvpx-vp9", {"crf": "24", "b": "0", "deadline": "good", "cpu-used": "5", "row-mt": "1"})
        if webm
        else ("libx264", {"crf": "15", "preset": "medium"})
    )
    container = pyav().open(str(path), mode="w", format="webm" if webm else "mp4")
    with container:
        stream: Any = container.add_stream(codec, rate=Fraction(clip.fps), options=options)
        stream.width, stream.height = width, clip.height
        even = width % 2 == 0 and clip.height % 2 == 0
        stream.pix_fmt = "yuv420p" if even else "yuv444p"
        # Untagged colours are guessed by players, differently by size; tagged ones are not.
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        with copied_sound(sound, container, clip.num_frames / Fraction(clip.fps)) as copy_until:
            for frame in _video_frames(*clips):
                frame = frame.reformat(format=stream.pix_fmt, dst_colorspace=_BT709)
                container.mux(stream.encode(frame))
                copy_until(frame.pts * frame.time_base)
            container.mux(stream.encode(None))
            copy_until(None)


def write_gif(path: Path, clip: Clip) -> None:
    """Write a GIF with one palette made from all frames, so that still areas do not flicker."""
    av = pyav()
    graph: Any = av.filter.Graph()
    time_base = 1 / Fraction(clip.fps)
    source = graph.add_buffer(
        width=clip.width, height=clip.height, format="rgb24", time_base=time_base
    )
    split, palette = graph.add("split"), graph.add("palettegen")
    use, sink = graph.add("paletteuse"), graph.add("buffersink")
    source.link_to(split)
    split.link_to(palette, 0, 0)
    split.link_to(use, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    with av.open(str(path), mode="w", format="gif") as container:
        stream: Any = container.add_stream("gif", rate=Fraction(clip.fps))
        stream.width, stream.height, stream.pix_fmt = clip.width, clip.height, "pal8"
        for frame in _video_frames(clip):
            source.push(frame)
        source.push(None)
        for _ in range(clip.num_frames):
            container.mux(stream.encode(graph.pull()))
        container.mux(stream.encode(None))


def _video_frames(*clips: Clip) -> Iterator[Any]:
    new_frame = pyav().VideoFrame.from_ndarray
    for i, together in enumerate(zip(*(clip.frames for clip in clips), strict=True)):
        pixels = np.concatenate([frame.cpu().numpy() for frame in together], axis=1)
        frame = new_frame(pixels, format="rgb24")
        frame.pts, frame.time_base = i, 1 / Fraction(clips[0].fps)
        yield frame
