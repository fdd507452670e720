"""Still images in and out of files, through Pillow: uint8 [H, W, 3]."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from genhoi.media.files import IMAGE_SUFFIXES, PathLike, atomic_path, existing

__all__ = [
    "BACKGROUND",
    "image_paths",
    "load_rgb",
    "load_rgba",
    "on_grey",
    "read_image",
    "read_image_with_alpha",
    "write_image",
]

BACKGROUND = 128


def read_image(path: PathLike) -> Tensor:
    """Read a still image as uint8 [H, W, 3]; transparency is composited over grey 128.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: it is not an image.

    Example:
        >>> import genhoi, torch
        >>> path = genhoi.write_image("mug.png", torch.full((20, 30, 3), 90, dtype=torch.uint8))
        >>> tuple(genhoi.read_image(path).shape)
        (20, 30, 3)
    """
    path = existing(path, "image")
    return torch.from_numpy(load_rgb(path, background=BACKGROUND))


def read_image_with_alpha(path: PathLike) -> tuple[Tensor, Tensor | None]:
    """Read a still image and its transparency apart.

    Returns:
        uint8 [H, W, 3], upright, and uint8 [H, W], 255 where it is opaque; None for the latter if
        the file has no transparency.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: it is not an image.
    """
    rgba = load_rgba(existing(path, "image"))
    if rgba is None:
        return read_image(path), None
    pixels = torch.from_numpy(rgba)
    return pixels[..., :3].contiguous(), pixels[..., 3].contiguous()


def write_image(path: PathLike, image: Tensor, *, overwrite: bool = False) -> Path:
    """Write a uint8 image [H, W, 3], or [H, W, 4] with transparency; the suffix is the format.

    Raises:
        FileExistsError: the target exists and `overwrite` is False.
        TypeError: `image` is not uint8.
        ValueError: its shape, or the suffix, is not one of those above.

    Example:
        >>> import genhoi, torch
        >>> genhoi.write_image("grey.png", torch.full((20, 30, 3), 128, dtype=torch.uint8))
        PosixPath('grey.png')
    """
    path = Path(path)
    if image.dtype != torch.uint8:
        raise TypeError(f"image: got {image.dtype}, want torch.uint8")
    if image.ndim != 3 or image.shape[2] not in (3, 4):
        raise ValueError(f"image: got shape {tuple(image.shape)}, want [H, W, 3] or [H, W, 4]")
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise ValueError(f"path: got {path}, want a name ending in {_listed(IMAGE_SUFFIXES)}")
    with atomic_path(path, overwrite=overwrite) as temporary:
        Image.fromarray(image.cpu().numpy()).save(temporary)
    return path


def image_paths(path: Path) -> list[Path]:
    """List a folder's images in natural order of their names, or the one image.

    Raises:
        ValueError: a folder without images.
    """
    if path.is_file():
        return [path]
    paths = [p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.name[0] != "."]
    if not paths:
        raise ValueError(f"{path}: a folder without images ({_listed(IMAGE_SUFFIXES)})")
    return sorted(paths, key=lambda p: _natural(p.name))


def load_rgb(path: Path, *, background: int) -> np.ndarray:
    """Read one image as uint8 [H, W, 3], upright, transparency composited over a grey.

    Raises:
        ValueError: it is not an image.
    """
    return on_grey(_upright(path), background=background)


def on_grey(image: Image.Image, *, background: int = BACKGROUND) -> np.ndarray:
    """Composite a picture over a grey; return uint8 [H, W, 3]."""
    if _is_transparent(image):
        image = image.convert("RGBA")
        below = Image.new("RGBA", image.size, (background, background, background, 255))
        image = Image.alpha_composite(below, image)
    return np.array(image.convert("RGB"))


def load_rgba(path: Path) -> np.ndarray | None:
    """Read one image as uint8 [H, W, 4], upright; None where it cannot be transparent.

    Raises:
        ValueError: it is not an image.
    """
    image = _upright(path)
    return np.array(image.convert("RGBA")) if _is_transparent(image) else None


def _upright(path: Path) -> Image.Image:
    """Open an image, turned as its file says, with 8 bits a channel."""
    try:
        with Image.open(path) as opened:
            image: Image.Image = ImageOps.exif_transpose(opened)
            image.load()
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{path}: not an image that can be read ({error})") from error
    if image.mode.startswith("I"):
        # Pillow clips 16-bit values instead of scaling them.
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).astype(np.uint8))
    return image


def _is_transparent(image: Image.Image) -> bool:
    return "A" in image.getbands() or "transparency" in image.info


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _listed(suffixes: frozenset[str]) -> str:
    return ", ".join(sorted(suffixes))
