"""A small hand-object clip made on the spot: no download, no dataset, the same pixels every time.

A drawn hand carries a photographed coffee cup through a photographed scene. Both photographs ship
inside scikit-image (`skimage.data.coffee` and `skimage.data.astronaut`). The hand is drawn because
no freely packaged photograph shows one. The clip is meant for demonstrations and tests, not for
training.

    python -m genhoi.data.cup --out DIR

writes DIR/video.mp4, DIR/mask.mp4 and DIR/object.png.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

from genhoi.extras import needed_for
from genhoi.media import Clip, check_target, write_clip, write_image, write_mask

__all__ = ["SyntheticClip", "make_hoi_clip", "write_hoi_clip"]

Point = tuple[float, float]

# Everything about the sprite is in pixels of the 600 x 400 coffee photograph.
_CANVAS = (900, 900)
_CUP_BOX = (155, 8, 425, 318)
_CUP_CENTER: Point = (292.0, 165.0)
_CUP_RIM = (173, 18, 409, 209)
_CUP_OUTLINE = (
    "173,105 176,150 184,190 196,215 216,228 204,246 197,268 196,290 202,303 214,307 "
    "229,303 241,290 252,276 270,282 295,284 315,280 329,268 343,250 368,236 385,208 "
    "398,170 408,125"
)
_CUP_BODY: tuple[Point, ...] = tuple(
    (int(x), int(y)) for x, y in (point.split(",") for point in _CUP_OUTLINE.split())
)
_SKIN = (226, 172, 140)
_SLEEVE = (52, 86, 128)


@dataclass(frozen=True)
class SyntheticClip:
    """What `make_hoi_clip` makes.

    Args:
        clip: the video, uint8 [F, H, W, 3].
        mask: bool [F, H, W], the cup and the hand that holds it.
        object: uint8 [h, w, 4], the cup alone, cut out (the fourth channel is its opacity).
    """

    clip: Clip
    mask: Tensor
    object: Tensor


def make_hoi_clip(
    *, num_frames: int = 81, height: int = 272, width: int = 480, fps: float = 24
) -> SyntheticClip:
    """Make a clip of a hand that carries a cup in front of a slowly moving scene.

    Args:
        num_frames: length F. The model wants 1 + 4 n.
        height: rows H in pixels, at least 32.
        width: columns W in pixels, at least 32.
        fps: frames a second.

    Returns:
        The clip, its mask and the object's picture; the same for the same arguments.

    Raises:
        ImportError: scikit-image is not installed.
        ValueError: a size is too small.
    """
    if num_frames < 1:
        raise ValueError(f"num_frames: got {num_frames}, want at least 1")
    if min(height, width) < 32:
        raise ValueError(f"size: got {width}x{height}, want at least 32x32")
    sprite, region = _sprite()
    scene = _photograph("astronaut")
    frames, masks = [], []
    for i in range(num_frames):
        time = i / max(1, num_frames - 1)
        place = _placement(time, (height, width))
        frame = _background(scene, time, (height, width)).convert("RGBA")
        frame.alpha_composite(_place(sprite, place, (height, width)))
        frames.append(np.asarray(frame.convert("RGB")))
        masks.append(np.asarray(_place(region, place, (height, width))) > 127)
    return SyntheticClip(
        clip=Clip(torch.from_numpy(np.stack(frames)), fps),
        mask=torch.from_numpy(np.stack(masks)),
        object=torch.from_numpy(np.array(_cup())),
    )


def write_hoi_clip(folder: str | Path, made: SyntheticClip, *, overwrite: bool = False) -> Path:
    """Write video.mp4, mask.mp4 and object.png into a folder, which is made if needed.

    Raises:
        FileExistsError: one of the files exists and `overwrite` is False; then none is written.
    """
    folder = Path(folder)
    for name in ("video.mp4", "mask.mp4", "object.png"):
        check_target(folder / name, overwrite=overwrite)
    write_clip(folder / "video.mp4", made.clip, overwrite=overwrite)
    write_mask(folder / "mask.mp4", made.mask, fps=made.clip.fps, overwrite=overwrite)
    write_image(folder / "object.png", made.object, overwrite=overwrite)
    return folder


# -------------------------------------------------------------------------------------- photographs


@cache
def _photograph(name: str) -> Image.Image:
    with needed_for("the synthetic clip, made from photographs,"):
        from skimage import data
    return Image.fromarray(getattr(data, name)())


@cache
def _cup() -> Image.Image:
    """Return the cup cut out of the photograph, RGBA."""
    photo = _photograph("coffee").convert("RGBA")
    outline = Image.new("L", photo.size, 0)
    draw = ImageDraw.Draw(outline)
    draw.ellipse(_CUP_RIM, fill=255)
    draw.polygon(_CUP_BODY, fill=255)
    photo.putalpha(outline.filter(ImageFilter.GaussianBlur(1.2)))
    return photo.crop(_CUP_BOX)


# ----------------------------------------------------------------------------------------- the hand


@cache
def _sprite() -> tuple[Image.Image, Image.Image]:
    """Return the arm holding the cup, RGBA, and the outline of hand and cup alone, L."""
    cup = Image.new("RGBA", _CANVAS, (0, 0, 0, 0))
    cup.paste(_cup(), _CUP_BOX[:2])
    palm = _limb([(424, 226), (470, 268)], [50, 50], _SKIN)
    arm = _limb([(424, 226), (470, 268), (800, 620)], [50, 50, 74], _SKIN)
    sleeve = _limb([(585, 390), (880, 705)], [72, 96], _SLEEVE)
    thumb = _limb([(428, 205), (396, 112)], [24, 17], _SKIN)
    fingers = [
        _limb([(425, 214), (318, 222)], [20, 16], _SKIN),
        _limb([(424, 242), (306, 246)], [19, 16], _SKIN),
        _limb([(430, 268), (312, 269)], [18, 14], _SKIN),
    ]
    sprite = _stack([arm, sleeve, cup, thumb, *fingers])
    region = _stack([palm, cup, thumb, *fingers]).getchannel("A")
    return sprite, region


def _stack(layers: list[Image.Image]) -> Image.Image:
    out = Image.new("RGBA", _CANVAS, (0, 0, 0, 0))
    for layer in layers:
        out.alpha_composite(layer)
    return out


def _limb(
    points: Sequence[Point], radii: Sequence[float], color: tuple[int, int, int]
) -> Image.Image:
    """Draw a tapered, rounded stroke through points, shaded like a tube lit from above, RGBA."""
    columns, rows = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in _CANVAS))
    nearest = np.full_like(columns, np.inf)
    light, cover = np.zeros_like(columns), np.zeros_like(columns)
    for (start, end), (r0, r1) in zip(pairwise(points), pairwise(radii), strict=True):
        along = np.subtract(end, start, dtype=np.float32)
        x, y = columns - start[0], rows - start[1]
        part = np.clip((x * along[0] + y * along[1]) / (along @ along), 0, 1)
        radius = r0 + part * (r1 - r0)
        dy = (y - part * along[1]) / radius
        distance = np.hypot((x - part * along[0]) / radius, dy)
        shade = 0.55 + 0.4 * np.sqrt(np.clip(1 - distance**2, 0, 1)) - 0.18 * dy
        light = np.where(distance < nearest, shade, light)
        cover = np.maximum(cover, np.clip((1 - distance) * radius + 0.5, 0, 1))
        nearest = np.minimum(nearest, distance)
    rgb = np.clip(np.array(color, np.float32) * light[..., None], 0, 255)
    return Image.fromarray(np.dstack([rgb, cover * 255]).astype(np.uint8))


# --------------------------------------------------------------------------------------- the motion


def _placement(time: float, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return the cup's x, y, size relative to its photograph, and turn, at a time from 0 to 1."""
    height, width = size
    x = width * (0.30 + 0.42 * (0.5 - 0.5 * math.cos(2.5 * math.pi * time)))
    y = height * (0.60 + 0.10 * math.sin(2 * math.pi * time))
    scale = min(height, width) / 272 * (0.36 + 0.04 * math.sin(3 * math.pi * time))
    return x, y, scale, math.radians(9 * math.sin(4 * math.pi * time))


def _place(
    image: Image.Image, placement: tuple[float, float, float, float], size: tuple[int, int]
) -> Image.Image:
    """Draw the sprite or its outline at a placement into an empty frame."""
    x, y, scale, turn = placement
    cos, sin = math.cos(turn) / scale, math.sin(turn) / scale
    # Pillow wants the way back: from a frame's pixel to the sprite's. Shrinking first avoids jagged
    # edges.
    shrink = max(1, round(1 / scale / 1.5))
    small = image.reduce(shrink) if shrink > 1 else image
    center = _CUP_CENTER
    inverse = (cos, sin, center[0] - cos * x - sin * y, -sin, cos, center[1] + sin * x - cos * y)
    data = tuple(value / shrink for value in inverse)
    return small.transform(
        (size[1], size[0]), Image.Transform.AFFINE, data, Image.Resampling.BICUBIC
    )


def _background(scene: Image.Image, time: float, size: tuple[int, int]) -> Image.Image:
    """Cut a window of the frame's aspect out of the scene; it moves slowly to the right."""
    height, width = size
    scale = 0.92 * min(scene.width / width, scene.height / height)
    window = (width * scale, height * scale)
    left = (scene.width - window[0]) * (0.2 + 0.6 * time)
    top = min(8.0, scene.height - window[1])
    box = (left, top, left + window[0], top + window[1])
    return scene.resize((width, height), Image.Resampling.BICUBIC, box=box)


@click.command()
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write into.")
@click.option("--frames", default=81, show_default=True, help="Number of frames.")
@click.option("--size", default="480x272", show_default=True, help="Frame size, WIDTHxHEIGHT.")
@click.option("--fps", default=24.0, show_default=True, help="Frames a second.")
@click.option("--force", is_flag=True, help="Overwrite existing files.")
def main(out: Path, frames: int, size: str, fps: float, force: bool) -> None:
    """Write a synthetic hand-object clip: video.mp4, mask.mp4 and object.png."""
    try:
        width, height = (int(side) for side in size.lower().split("x"))
    except ValueError:
        raise click.ClickException(
            f"--size: got {size!r}, want WIDTHxHEIGHT, e.g. 480x272"
        ) from None
    try:
        for name in ("video.mp4", "mask.mp4", "object.png"):
            check_target(out / name, overwrite=force)
        made = make_hoi_clip(num_frames=frames, height=height, width=width, fps=fps)
        write_hoi_clip(out, made, overwrite=force)
    except (OSError, ValueError, ImportError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"Wrote video.mp4, mask.mp4 and object.png to {out}")


if __name__ == "__main__":
    main()
