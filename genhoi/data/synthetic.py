"""Clips of a hand that holds an object, made from a seed, with exact masks and no download.

A photograph drifts and its light changes; before it an articulated hand moves an object with a
texture of its own, whose picture is known. Training and test have no photograph, letter or object
in common. scikit-image carries the photographs.

    python -m genhoi.data.synthetic --out DIR --split test --index 3

writes DIR/video.mp4, DIR/mask.mp4, DIR/object.png and DIR/object_mask.mp4.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import click
import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor
from torch.nn import functional as F

from genhoi.data.hand import Hand, draw_capsules, make_hand
from genhoi.data.sample import HOISample
from genhoi.data.sprites import Split, background, sprite
from genhoi.media.media import BACKGROUND, Clip, check_target, write_clip, write_image, write_mask

__all__ = ["MaskKind", "SyntheticHOI", "write_sample"]

MaskKind = Literal["tight", "box", "mixed"]

_VERSION = 1  # of what is drawn
_MASK_GROWTH = 2  # pixels that a tight mask is wider than hand and object
_BOX_MARGIN = 4
_OBJECT_PICTURE = 96


class SyntheticHOI:
    """A set of such clips; see `HOIDataset`.

    Sample i is a function of (split, seed, i) and the settings alone: the same on every machine up
    to the last bit of a float, and independent of which samples were made before.

    Args:
        split: "train" or "test".
        clips: how many.
        frames: of each clip; the model wants 1 + 4 n.
        size: (height, width) in pixels, at least 32.
        mask: "tight" follows hand and object, "box" is a rectangle around both, "mixed" one of both
            for each clip. The arm is never masked.
        seed: another one gives other clips.
        fps: frames a second.

    Raises:
        ImportError: scikit-image is not installed (from `__getitem__`).
        ValueError: a size, length or option is out of range.
    """

    def __init__(
        self,
        split: Split,
        *,
        clips: int,
        frames: int = 49,
        size: tuple[int, int] = (96, 96),
        mask: MaskKind = "tight",
        seed: int = 0,
        fps: float = 24,
    ) -> None:
        if split not in get_args(Split):
            raise ValueError(f"split: got {split!r}, wanted 'train' or 'test'")
        if mask not in get_args(MaskKind):
            raise ValueError(f"mask: got {mask!r}, wanted one of {get_args(MaskKind)}")
        if clips < 0 or frames < 1:
            raise ValueError(f"clips, frames: got {clips} and {frames}, wanted at least 0 and 1")
        if min(size) < 32:
            raise ValueError(f"size: got {size}, wanted at least (32, 32)")
        self.split, self.clips, self.frames, self.size = split, clips, frames, size
        self.mask, self.seed, self.fps = mask, seed, fps

    def __len__(self) -> int:
        return self.clips

    def __getitem__(self, index: int) -> HOISample:
        scene, rng = self._scene(index)
        frames, object_, hand = scene.draw()
        mask = _dilate(object_ | hand, _MASK_GROWTH)
        if self.mask == "box" or (self.mask == "mixed" and rng.random() < 0.5):
            mask = _boxed(mask, _BOX_MARGIN)
        return HOISample(
            name=f"{self.split}-{self.seed}-{index:05}",
            clip=Clip(frames, self.fps),
            mask=mask,
            object=scene.picture(),
            object_mask=object_,
            hand_mask=hand,
            object_boxes=scene.boxes(),
        )

    def __iter__(self) -> Iterator[HOISample]:
        return (self[i] for i in range(len(self)))

    def coordinates(self, index: int, *, cell: int = 8) -> Tensor:
        """Where on the object each part of the frame lies: its pose, exactly.

        Args:
            index: of the sample.
            cell: pixels between the points that are asked.

        Returns:
            float32 [F, H / cell, W / cell, 2]: (u, v) at the cells' centres, -1 to 1 over the
            object's picture, beyond outside it.
        """
        scene = self._scene(index)[0]
        height, width = self.size
        x = (torch.arange(width // cell) + 0.5) * cell
        y = (torch.arange(height // cell)[:, None] + 0.5) * cell
        return scene.pose.to_object(x, y, scene.aspect)

    def aspect(self, index: int) -> float:
        """The object's height over its width."""
        return self._scene(index)[0].aspect

    def _scene(self, index: int) -> tuple[_Scene, Generator]:
        """The scene, and its generator for what else is drawn."""
        if not 0 <= index < self.clips:
            raise IndexError(f"index: got {index}, wanted 0 to {self.clips - 1}")
        rng = np.random.default_rng([self.seed, get_args(Split).index(self.split), index])
        return _Scene(rng, self.split, self.frames, self.size), rng

    def fingerprint(self) -> str:
        """See `HOIDataset`."""
        return (
            f"synthetic {_VERSION}: {self.split}, {self.clips} clips of {self.frames} frames of "
            f"{self.size}, {self.mask} masks, seed {self.seed}"
        )


# ---------------------------------------------------------------------------------------- the scene


def _path(rng: Generator, frames: int, low: float, high: float) -> np.ndarray:
    """[frames], smooth, from one random value to another with a swing on the way, within bounds."""
    time = np.linspace(0, 1, frames)
    start, end = rng.uniform(low, high, 2)
    swing = 0.15 * (high - low) * np.sin(2 * np.pi * (rng.uniform(0.5, 1.5) * time + rng.random()))
    return np.clip(start + (end - start) * (time - np.sin(2 * np.pi * time) / 8) + swing, low, high)


@dataclass
class _Pose:
    """The object's place in every frame: [F] each; pixels, radians."""

    x: Tensor
    y: Tensor
    half_width: Tensor
    turn: Tensor
    lean: Tensor  # [F, 2], of the perspective

    def to_pixels(self, points: Tensor) -> Tensor:
        """Points [K, F, n, 2] of the object's frame, in its half widths -> pixels."""
        u, v = points.unbind(-1)
        cos, sin, half = (
            t[:, None] for t in (torch.cos(self.turn), torch.sin(self.turn), self.half_width)
        )
        x = self.x[:, None] + half * (cos * u - sin * v)
        y = self.y[:, None] + half * (sin * u + cos * v)
        return torch.stack([x, y], -1)

    def to_object(self, x: Tensor, y: Tensor, aspect: float) -> Tensor:
        """Pixel centres -> [F, H, W, 2], (u, v) from -1 to 1 over the sprite."""
        dx, dy = x - self.x[:, None, None], y - self.y[:, None, None]
        cos, sin = torch.cos(self.turn)[:, None, None], torch.sin(self.turn)[:, None, None]
        half = self.half_width[:, None, None]
        u, v = (cos * dx + sin * dy) / half, (cos * dy - sin * dx) / half
        w = 1 + self.lean[:, 0, None, None] * u + self.lean[:, 1, None, None] * v
        w = w.clamp(min=0.3)
        return torch.stack([u / w, v / (w * aspect)], -1)


class _Scene:
    """Everything about one clip, drawn from its random numbers in a fixed order."""

    def __init__(self, rng: Generator, split: Split, frames: int, size: tuple[int, int]) -> None:
        self.size = size
        height, width = size
        side = min(size)
        path = partial(_path, rng, frames)

        def moving(low: float, high: float) -> Tensor:
            return torch.from_numpy(path(low, high).astype(np.float32))

        self.sprite, self.aspect = sprite(rng, split)
        self.pose = _Pose(
            x=width * moving(0.33, 0.67),
            y=height * moving(0.32, 0.62),
            half_width=side * moving(0.15, 0.21),
            turn=moving(-0.3, 0.3),
            lean=torch.stack([moving(-0.15, 0.15), moving(-0.15, 0.15)], -1),
        )
        self.hand = make_hand(rng, path, self.aspect, left=bool(rng.random() < 0.5))
        self.photo = background(rng, split)
        self.zoom, turn = moving(0.5, 0.8), moving(-0.06, 0.06)
        self.window = torch.stack([moving(-0.2, 0.2), moving(-0.2, 0.2)], -1)
        self.camera_turn = turn
        gain = torch.stack([moving(0.8, 1.2)] * 3, -1)
        tint = torch.stack([moving(0.93, 1.07) for _ in range(3)], -1)
        self.light = (gain * tint)[:, :, None, None]
        self.x = torch.arange(width) + 0.5
        self.y = torch.arange(height)[:, None] + 0.5

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """uint8 frames [F, H, W, 3]; bool [F, H, W] of the object's and of the hand's pixels."""
        image = self._photograph()
        hand: Hand = self.hand
        arm, cover = self._capsules(hand.arm, hand.arm_radii, hand.sleeve)
        image = torch.lerp(image, arm, cover)
        palm, behind = self._capsules(hand.behind, hand.behind_radii, hand.skin)
        image = torch.lerp(image, palm, behind)
        body = self._object()
        image = torch.lerp(image, body[:, :3], body[:, 3:])
        fingers, before = self._capsules(hand.front, hand.front_radii, hand.skin)
        image = torch.lerp(image, fingers, before)
        pixels = (image * self.light).clamp(0, 1).mul(255).round().to(torch.uint8)
        fingers_seen = before[:, 0] > 0.5
        object_seen = (body[:, 3] > 0.5) & ~fingers_seen
        hand_seen = fingers_seen | ((behind[:, 0] > 0.5) & ~object_seen)
        return pixels.permute(0, 2, 3, 1).contiguous(), object_seen, hand_seen

    def picture(self) -> Tensor:
        """uint8 [h, w, 3]: the object alone, upright, on grey."""
        h = round(_OBJECT_PICTURE * min(1, self.aspect))
        w = round(_OBJECT_PICTURE * min(1, 1 / self.aspect))
        whole = F.interpolate(self.sprite[None], (h, w), mode="bilinear", antialias=True)[0]
        rgb = torch.lerp(torch.tensor(BACKGROUND / 255), whole[:3], whole[3:])
        return rgb.mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous()

    def boxes(self) -> Tensor:
        """float32 [F, 4], left, top, right, bottom, cut at the frame's edges."""
        inside = self._object()[:, 3] > 0.5
        height, width = self.size
        out = []
        for cells, extent in ((inside.any(1), width), (inside.any(2), height)):
            first = cells.float().argmax(1)
            last = extent - cells.flip(1).float().argmax(1)
            out.append((first, last))
        (left, right), (top, bottom) = out
        return torch.stack([left, top, right, bottom], 1).float()

    def _photograph(self) -> Tensor:
        """[F, 3, H, W]."""
        height, width = self.size
        x, y = (2 * self.x - width) / max(self.size), (2 * self.y - height) / max(self.size)
        cos, sin = (f(self.camera_turn)[:, None, None] for f in (torch.cos, torch.sin))
        zoom, window = self.zoom[:, None, None], self.window[:, :, None, None]
        grid = torch.stack(
            [window[:, 0] + zoom * (cos * x - sin * y), window[:, 1] + zoom * (sin * x + cos * y)],
            -1,
        )
        photos = self.photo.expand(len(grid), -1, -1, -1)
        return F.grid_sample(photos, grid, align_corners=False, padding_mode="reflection")

    def _object(self) -> Tensor:
        """[F, 4, H, W]."""
        uv = self.pose.to_object(self.x, self.y, self.aspect)
        sprites = self.sprite.expand(len(uv), -1, -1, -1)
        return F.grid_sample(sprites, uv, align_corners=False, padding_mode="zeros")

    def _capsules(self, ends: Tensor, radii: Tensor, color: Tensor) -> tuple[Tensor, Tensor]:
        radii = radii[:, None] * self.pose.half_width[:, None]
        return draw_capsules(self.x, self.y, self.pose.to_pixels(ends), radii, color)


def _dilate(mask: Tensor, pixels: int) -> Tensor:
    return F.max_pool2d(mask.float()[:, None], 2 * pixels + 1, 1, pixels)[:, 0] > 0


def _boxed(mask: Tensor, margin: int) -> Tensor:
    """The rectangle around each frame's mask, with a margin."""
    rows, columns = (_dilate(mask.any(i)[:, None], margin)[:, 0] for i in (2, 1))

    def filled(line: Tensor) -> Tensor:
        return line.cumsum(1).bool() & line.flip(1).cumsum(1).bool().flip(1)

    return filled(rows)[:, :, None] & filled(columns)[:, None]


# ---------------------------------------------------------------------------------------- the files


def write_sample(folder: str | Path, sample: HOISample, *, overwrite: bool = False) -> Path:
    """Write video.mp4, mask.mp4, object.png and, if known, object_mask.mp4 into a folder.

    Raises:
        FileExistsError: one of the files exists and `overwrite` is False; then none is written.
    """
    folder = Path(folder)
    for name in ("video.mp4", "mask.mp4", "object.png", "object_mask.mp4"):
        check_target(folder / name, overwrite=overwrite)
    fps = sample.clip.fps
    write_clip(folder / "video.mp4", sample.clip, overwrite=overwrite)
    write_mask(folder / "mask.mp4", sample.mask, fps=fps, overwrite=overwrite)
    write_image(folder / "object.png", sample.object, overwrite=overwrite)
    if sample.object_mask is not None:
        write_mask(folder / "object_mask.mp4", sample.object_mask, fps=fps, overwrite=overwrite)
    return folder


@click.command()
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write into.")
@click.option("--split", default="test", show_default=True, type=click.Choice(get_args(Split)))
@click.option("--index", default=0, show_default=True, type=click.IntRange(0), help="Which clip.")
@click.option("--seed", default=0, show_default=True, help="Of the set.")
@click.option("--frames", default=49, show_default=True, help="Number of frames.")
@click.option("--size", default="96x96", show_default=True, help="Frame size, WIDTHxHEIGHT.")
@click.option("--mask", default="tight", show_default=True, type=click.Choice(get_args(MaskKind)))
@click.option("--force", is_flag=True, help="Overwrite existing files.")
def main(
    out: Path, split: Split, index: int, seed: int, frames: int, size: str, mask: MaskKind,
    force: bool,
) -> None:  # fmt: skip
    """Write a synthetic hand-object clip: video.mp4, mask.mp4, object.png, object_mask.mp4."""
    try:
        width, height = (int(side) for side in size.lower().split("x"))
    except ValueError:
        raise click.ClickException(f"--size: got {size!r}, want WIDTHxHEIGHT, e.g. 96x96") from None
    try:
        dataset = SyntheticHOI(
            split, clips=index + 1, frames=frames, size=(height, width), mask=mask, seed=seed
        )
        write_sample(out, dataset[index], overwrite=force)
    except (OSError, ValueError, ImportError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"Wrote video.mp4, mask.mp4, object.png and object_mask.mp4 to {out}")


if __name__ == "__main__":
    main()
