"""A mask drawn over its clip: the clip with tint and outline, and some frames in one picture."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from genhoi.masking.cues import Box, Cue, Drawn, Point, Text
from genhoi.masking.protocol import Track
from genhoi.media import Clip

__all__ = ["overlay", "preview"]

_TINT, _LINE = (255, 196, 0), (255, 225, 77)
_BOX, _INSIDE, _OUTSIDE, _LOST = (0, 200, 255), (60, 220, 60), (255, 60, 60), (255, 60, 60)
_SHOWN = 8
_COLUMNS = 4
_WIDTH = 320  # of a frame in the picture
_GAP = 4


def overlay(clip: Clip, mask: Tensor) -> Clip:
    """Draw a mask over its clip.

    Args:
        clip: F frames.
        mask: bool [F, H, W].
    """
    pairs = zip(clip.frames, mask, strict=True)
    frames = [torch.from_numpy(_drawn(f.cpu().numpy(), m.cpu().numpy())) for f, m in pairs]
    return Clip(torch.stack(frames), clip.fps)


def preview(clip: Clip, track: Track, cues: Sequence[Cue]) -> Tensor:
    """Draw eight frames with mask, boxes and points; lost ones have a red frame.

    Frames are spread evenly; the nearest of them makes room for a frame with cues.

    Returns:
        uint8 [H, W, 3].
    """
    frames = _chosen(clip.num_frames, cues)
    scale = _WIDTH / clip.width
    size = (_WIDTH, max(1, round(clip.height * scale)))
    tiles = []
    for frame in frames:
        picture = _drawn(clip.frames[frame].cpu().numpy(), track.mask[frame].cpu().numpy())
        kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        tile = cv2.resize(picture, size, interpolation=kind)
        _draw_cues(tile, frame, cues, scale)
        lost = bool(track.lost[frame])
        if lost:
            cv2.rectangle(tile, (0, 0), (size[0] - 1, size[1] - 1), _LOST, thickness=6)
        _write(tile, f"frame {frame}" + (": lost" if lost else ""))
        tiles.append(np.pad(tile, ((0, _GAP), (0, _GAP), (0, 0)), constant_values=255))
    while len(tiles) % min(_COLUMNS, len(frames)):
        tiles.append(np.full_like(tiles[0], 255))
    columns = min(_COLUMNS, len(frames))
    rows = [np.concatenate(tiles[i : i + columns], 1) for i in range(0, len(tiles), columns)]
    return torch.from_numpy(np.concatenate(rows)[:-_GAP, :-_GAP].copy())


def _drawn(frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Tint a frame where the mask is, and draw its outline."""
    solid = mask.astype(np.uint8)
    tint = np.full_like(frame, _TINT)
    out = np.where(mask[..., None], cv2.addWeighted(frame, 0.65, tint, 0.35, 0), frame)
    outlines, _ = cv2.findContours(solid, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(out, outlines, -1, _LINE, thickness=max(1, round(max(mask.shape) / 480)))
    return out


def _chosen(frames: int, cues: Sequence[Cue]) -> list[int]:
    count = min(_SHOWN, frames)
    chosen = [round(i * (frames - 1) / max(1, count - 1)) for i in range(count)]
    with_cues = sorted({cue.frame for cue in cues if not isinstance(cue, Text)})[:count]
    for frame in with_cues:
        free = [f for f in chosen if f not in with_cues]
        if frame not in chosen and free:
            chosen[chosen.index(min(free, key=lambda f: abs(f - frame)))] = frame
    return sorted(chosen)


def _draw_cues(tile: np.ndarray, frame: int, cues: Sequence[Cue], scale: float) -> None:
    for cue in cues:
        if isinstance(cue, Text | Drawn) or cue.frame != frame:
            continue
        if isinstance(cue, Box):
            left, top, right, bottom = (round(side * scale) for side in cue.corners)
            cv2.rectangle(tile, (left, top), (right - 1, bottom - 1), _BOX, thickness=2)
        elif isinstance(cue, Point):
            place = round(cue.x * scale), round(cue.y * scale)
            cv2.circle(tile, place, 6, (0, 0, 0), thickness=-1)
            cv2.circle(tile, place, 4, _INSIDE if cue.inside else _OUTSIDE, thickness=-1)


def _write(tile: np.ndarray, text: str) -> None:
    font = cv2.FONT_HERSHEY_SIMPLEX
    (width, height), below = cv2.getTextSize(text, font, 0.45, 1)
    cv2.rectangle(tile, (0, 0), (width + 8, height + below + 6), (0, 0, 0), thickness=-1)
    cv2.putText(tile, text, (4, height + 4), font, 0.45, (255, 255, 255), 1, cv2.LINE_AA)
