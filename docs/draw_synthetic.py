"""Draws docs/synthetic.png: some clips of genhoi.data.synthetic.

A row shows the object's picture, five frames, the middle frame as the model gets it, and its parts.

    python docs/draw_synthetic.py
"""

from pathlib import Path

import torch
from torch import Tensor

from genhoi.conditioning.condition import paint_grey
from genhoi.data.synthetic import SyntheticHOI
from genhoi.media import fit_image, write_image

ROWS = (("train", 17), ("train", 18), ("train", 21), ("train", 23), ("test", 11), ("test", 14))
FRAMES = (0, 12, 24, 36, 48)
GAP = 3
OBJECT, HAND = torch.tensor([230, 90, 60]), torch.tensor([90, 190, 90])


def joined(pictures: list[Tensor], dim: int) -> Tensor:
    shape = list(pictures[0].shape)
    shape[dim] = GAP
    gap = torch.full(shape, 255, dtype=torch.uint8)
    return torch.cat([part for picture in pictures for part in (picture, gap)][:-1], dim=dim)


def row(split: str, index: int) -> Tensor:
    sample = SyntheticHOI(split, clips=index + 1)[index]  # type: ignore[arg-type]
    frames, middle = sample.clip.frames, FRAMES[len(FRAMES) // 2]
    parts = torch.zeros_like(frames[middle])
    parts[sample.object_mask[middle]] = OBJECT.to(torch.uint8)  # type: ignore[index]
    parts[sample.hand_mask[middle]] = HAND.to(torch.uint8)  # type: ignore[index]
    picture = fit_image(sample.object, (sample.clip.height, sample.clip.width))
    hidden = paint_grey(frames, sample.mask)[middle]
    return joined([picture, *(frames[i] for i in FRAMES), hidden, parts], dim=1)


if __name__ == "__main__":
    sheet = joined([row(split, index) for split, index in ROWS], dim=0)
    write_image(Path(__file__).with_name("synthetic.png"), sheet, overwrite=True)
