"""Draws docs/masks.png, docs/masks-box.png and docs/object.png.

The first two show `genhoi mask` on a held-out clip of genhoi.data.synthetic, from one box, tight
and as boxes. The third shows `genhoi object` on a photograph that scikit-image carries (coffee, by
Rachel Michetti, CC0): the box, the cut-out, and what the model sees.

    python docs/draw_masks.py
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import cv2
import torch
from torch import Tensor

from benchmarks.masks import box_around
from genhoi.data.synthetic import SyntheticHOI
from genhoi.masking import Track, cut_out, track_mask
from genhoi.masking.overlay import preview
from genhoi.masking.shape import boxed, grown
from genhoi.media import fit_image, read_image, write_image

HERE = Path(__file__).parent
CLIP, SIZE = 6, (144, 256)
WIDTH = 820  # of the pictures, in pixels
BOX = (74, 14, 412, 376)  # around cup and saucer
GAP = 6


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize an image to (width, height)."""
    return torch.from_numpy(cv2.resize(image.numpy(), size, interpolation=cv2.INTER_AREA))


def draw_masks() -> None:
    sample = SyntheticHOI("test", clips=CLIP + 1, size=SIZE)[CLIP]
    cues = [box_around(sample.mask[0], 0.1)]
    track = track_mask(sample.clip, cues)
    for name, mask in (("masks", grown(track.mask, 2)), ("masks-box", boxed(track.mask))):
        shown = Track(mask, track.confidence, track.lost)
        picture = preview(sample.clip, shown, cues)
        size = WIDTH, round(picture.shape[0] * WIDTH / picture.shape[1])
        write_image(HERE / f"{name}.png", resized(picture, size), overwrite=True)


def draw_object() -> None:
    photo = read_image(Path(str(files("skimage") / "data" / "coffee.png")))
    found = cut_out(photo, box=BOX)
    x, y, w, h = BOX
    marked = photo.numpy().copy()
    cv2.rectangle(marked, (x, y), (x + w, y + h), (0, 200, 255), thickness=4)
    pictures = [
        fit_image(image, (200, 300), background=255)
        for image in (torch.from_numpy(marked), found.image)
    ]
    pictures.append(resized(fit_image(found.image, (272, 480)), (300, 170)))
    pictures[-1] = fit_image(pictures[-1], (200, 300), background=255)
    gap = torch.full((200, GAP, 3), 255, dtype=torch.uint8)
    row = [part for picture in pictures for part in (picture, gap)][:-1]
    write_image(HERE / "object.png", torch.cat(row, dim=1), overwrite=True)
    print(*found.notes, f"{float(found.mask.float().mean()):.1%} of the photograph")


if __name__ == "__main__":
    draw_object()
    draw_masks()
