"""Sound for tests: a tone beside a clip's frames, and what a file's sound is made of."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

__all__ = ["add_sound", "sound_packets"]

_RATE = 48000


def add_sound(video: Path, target: Path, *, codec: str = "aac", seconds: float = 2.0) -> Path:
    """Write a video again with a tone; the suffix of the target chooses the container."""
    with av.open(str(video)) as source, av.open(str(target), mode="w") as out:
        pictures = source.streams.video[0]
        copied = out.add_stream_from_template(pictures)
        tone: Any = out.add_stream(codec, rate=_RATE, layout="mono")
        for packet in source.demux(pictures):
            if packet.dts is not None:
                packet.stream = copied
                out.mux(packet)
        wave = np.sin(np.arange(int(seconds * _RATE)) * 2 * np.pi * 440 / _RATE)
        samples = (wave * 12000).astype(np.int16)
        for begin in range(0, len(samples), 1024):
            frame = av.AudioFrame.from_ndarray(
                samples[None, begin : begin + 1024], format="s16", layout="mono"
            )
            frame.sample_rate, frame.pts, frame.time_base = _RATE, begin, Fraction(1, _RATE)
            out.mux(tone.encode(frame))
        out.mux(tone.encode(None))
    return target


def sound_packets(path: Path) -> list[tuple[float, str]]:
    """List the time in seconds and a hash of every packet that begins within the pictures."""
    with av.open(str(path)) as container:
        pictures = container.streams.video[0]
        count = sum(packet.size > 0 for packet in container.demux(pictures))
        length = count / pictures.average_rate
    with av.open(str(path)) as container:
        sound = container.streams.audio[0]
        return [
            (
                round(float(packet.pts * packet.time_base), 4),
                hashlib.sha256(bytes(packet)).hexdigest()[:12],
            )
            for packet in container.demux(sound)
            if packet.pts is not None and packet.pts * packet.time_base < length
        ]
