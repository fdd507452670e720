"""Clips of a hand that holds an object, made from a seed, with exact masks and no download.

A hand turns a product in three dimensions before a photograph out of focus; the light changes. The
object's picture shows the same product from another side. Training and test have no photograph,
letter or product in common. scikit-image carries the photographs.

    python -m genhoi.data.synthetic --out DIR --split test --index 3

writes DIR/video.mp4, DIR/mask.mp4, DIR/object.png and DIR/object_mask.mp4.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import click
import numpy as np
from numpy.random import Generator
from torch import Tensor
from torch.nn import functional as F

from genhoi.data.photographs import Split
from genhoi.data.sample import HOISample
from genhoi.data.scene import Scene
from genhoi.media import Clip, check_target, write_clip, write_image, write_mask

__all__ = ["MaskKind", "SyntheticHOI", "write_sample"]

MaskKind = Literal["tight", "grown", "box", "mixed"]

_VERSION = 2  # of what is drawn
_MASK_GROWTH = 2  # pixels that a tight mask is wider than hand and object
_BOX_MARGIN = 4
_GROWN = (4, 12)  # pixels that a grown mask is wider, in a frame whose shorter side is 128
_MIXED: dict[MaskKind, float] = {"tight": 0.4, "grown": 0.3, "box": 0.3}


class SyntheticHOI:
    """Holds a set of such clips; see `HOIDataset`.

    Sample i is a function of (split, seed, i) and the settings alone: the same on every machine up
    to the last bit of a float, and independent of which samples were made before.

    Args:
        split: "train" or "test".
        clips: how many.
        frames: of each clip; the model wants 1 + 4 n.
        size: (height, width) in pixels, at least 32.
        mask: "tight" follows hand and object, "grown" follows them at a distance that differs from
            clip to clip, "box" is a rectangle around both, "mixed" one of these for each clip. The
            arm is never masked.
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
        size: tuple[int, int] = (128, 128),
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
        frames, object_, hand, boxes = scene.draw()
        return HOISample(
            name=f"{self.split}-{self.seed}-{index:05}",
            clip=Clip(frames, self.fps),
            mask=self._region(object_ | hand, rng),
            object=scene.picture(),
            object_mask=object_,
            hand_mask=hand,
            object_boxes=boxes,
        )

    def __iter__(self) -> Iterator[HOISample]:
        return (self[i] for i in range(len(self)))

    def _scene(self, index: int) -> tuple[Scene, Generator]:
        """Make the scene; its generator serves what else is drawn."""
        if not 0 <= index < self.clips:
            raise IndexError(f"index: got {index}, wanted 0 to {self.clips - 1}")
        rng = np.random.default_rng([self.seed, get_args(Split).index(self.split), index])
        return Scene(rng, self.split, self.frames, self.size), rng

    def _region(self, seen: Tensor, rng: Generator) -> Tensor:
        """Draw the mask round what is seen of hand and object."""
        kind = self.mask
        if kind == "mixed":
            kind = rng.choice(list(_MIXED), p=list(_MIXED.values()))
        tight = _dilate(seen, _MASK_GROWTH)
        if kind == "box":
            return _boxed(tight, _BOX_MARGIN)
        if kind == "grown":
            pixels = rng.uniform(*_GROWN) * min(self.size) / 128
            return tight | _rounded(_dilate(seen, max(1, round(pixels))), round(pixels / 2))
        return tight

    def fingerprint(self) -> str:
        """Say all that the samples depend on."""
        return (
            f"synthetic {_VERSION}: {self.split}, {self.clips} clips of {self.frames} frames of "
            f"{self.size}, {self.mask} masks, seed {self.seed}"
        )


def _dilate(mask: Tensor, pixels: int) -> Tensor:
    side = 2 * pixels + 1
    wide = F.max_pool2d(mask.float()[:, None], (1, side), 1, (0, pixels))
    return F.max_pool2d(wide, (side, 1), 1, (pixels, 0))[:, 0] > 0


def _rounded(mask: Tensor, pixels: int) -> Tensor:
    """Smooth an outline: each pixel becomes what most pixels round it are."""
    around = F.avg_pool2d(mask.float()[:, None], 2 * pixels + 1, 1, pixels, count_include_pad=False)
    return around[:, 0] > 0.5


def _boxed(mask: Tensor, margin: int) -> Tensor:
    """Draw the rectangle around each frame's mask, with a margin."""
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
@click.option("--size", default="128x128", show_default=True, help="Frame size, WIDTHxHEIGHT.")
@click.option("--mask", default="tight", show_default=True, type=click.Choice(get_args(MaskKind)))
@click.option("--force", is_flag=True, help="Overwrite existing files.")
def main(
    out: Path,
    split: Split,
    index: int,
    seed: int,
    frames: int,
    size: str,
    mask: MaskKind,
    force: bool,
) -> None:
    """Write a synthetic hand-object clip: video.mp4, mask.mp4, object.png, object_mask.mp4."""
    try:
        width, height = (int(side) for side in size.lower().split("x"))
    except ValueError:
        raise click.ClickException(f"--size: got {size!r}, want WIDTHxHEIGHT") from None
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
