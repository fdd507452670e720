"""Edits one held-out clip as a user would, and measures it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from benchmarks.tiny_model.retrieval import candidates_of, found
from genhoi.bases.base import Base
from genhoi.data.sample import HOISample
from genhoi.data.synthetic import MaskKind, SyntheticHOI
from genhoi.editing.crop import Crop
from genhoi.editing.paste import paste
from genhoi.editing.pipeline import GenHOIPipeline
from genhoi.evaluation.metrics import region_mean, region_psnr, squared_error, ssim_map, thirds
from genhoi.masking.shape import grown

__all__ = ["Condition", "TestClips", "codec_row", "edit", "edit_row", "object_psnr"]

_NO_WEIGHT = 1e-12  # strength of an object that is not to be seen: its share of attention is 0
_EDGE = 6  # pixels: the pasted edge reaches 4 along rows and columns in frames below 180


@dataclass(frozen=True)
class Condition:
    """What an edit is given.

    Args:
        given: the first frame, finished, or none.
        mask: how hand and object are masked, of `genhoi.data.synthetic.MaskKind`.
    """

    given: Literal["first", "none"]
    mask: MaskKind

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read "first-tight".

        Raises:
            ValueError: of other words.
        """
        given, _, mask = text.partition("-")
        if given not in ("first", "none") or mask not in get_args(MaskKind):
            raise ValueError(
                f"conditions: got {text!r}, wanted first or none, a dash, and one of "
                f"{', '.join(get_args(MaskKind))}"
            )
        return cls(cast(Any, given), cast(MaskKind, mask))

    def __str__(self) -> str:
        return f"{self.given}-{self.mask}"


@dataclass(frozen=True)
class TestClips:
    """The held-out clips: the first ones of the test split, seed 0. Nothing is chosen.

    Args:
        clips, frames: how many, how long.
        side: height and width, in pixels.
    """

    __test__ = False  # for pytest: not a test

    clips: int
    frames: int
    side: int = 128

    def sample(self, index: int, mask: MaskKind = "tight") -> HOISample:
        """Draw a clip; only its mask depends on the kind of mask."""
        size = (self.side, self.side)
        dataset = SyntheticHOI("test", clips=self.clips, frames=self.frames, size=size, mask=mask)
        return dataset[index]

    def candidates(self, index: int) -> list[int]:
        """List whose objects a clip's own is found among, itself first."""
        return candidates_of(index, self.clips)


def edit(
    pipeline: GenHOIPipeline,
    sample: HOISample,
    condition: Condition,
    *,
    index: int,
    steps: int | None,
    reference: bool = True,
) -> Tensor:
    """Edit a clip as a whole frame, no pixel of the source put back; return uint8 [F, H, W, 3].

    Args:
        pipeline: the model.
        sample: the clip; its object goes in.
        condition: what is given; its mask has to be the sample's.
        index: seed of the noise.
        steps: of Euler's method; None for the base's own.
        reference: else the object gets no weight.
    """
    frames = sample.clip.frames
    return pipeline(
        sample.clip,
        sample.mask,
        sample.object,
        first_frame=frames[0] if condition.given == "first" else None,
        strengths=None if reference else [_NO_WEIGHT],
        seed=index,
        steps=steps,
        crop="none",
        size=(frames.shape[1], frames.shape[2]),
        keep_background=False,
        progress_bar=False,
    ).frames


def edit_row(
    sample: HOISample,
    edited: Tensor,
    without: Tensor,
    *,
    pictures: list[Tensor],
    seconds: float,
) -> dict[str, Any]:
    """Measure an edit, and the same one without a reference.

    Args:
        sample: the clip as it should be.
        edited, without: uint8 [F, H, W, 3], no pixels put back.
        pictures: of the candidates, the right one first.
        seconds: that the edit took.

    Returns:
        Numbers, and lists of first, middle and last third: object_psnr, without_object_psnr,
        object_ssim, found, without_found; hand_psnr, background_psnr, mean over frames; and
        outside_difference, beyond_edge_difference, the largest difference of any value outside the
        mask, and outside its soft edge, where the background was put back.
    """
    truth, region, hand = sample.clip.frames, sample.object_mask, sample.hand_mask
    assert region is not None and hand is not None
    error = squared_error(edited, truth)
    return {
        "object_psnr": object_psnr(sample, edited),
        "without_object_psnr": object_psnr(sample, without),
        "object_ssim": _numbers(thirds(region_mean(ssim_map(edited, truth), region))),
        "hand_psnr": _numbers(region_psnr(error, hand).nanmean()),
        "background_psnr": _numbers(region_psnr(error, ~sample.mask).nanmean()),
        "found": _numbers(found(edited, region, pictures)),
        "without_found": _numbers(found(without, region, pictures)),
        "seconds": round(seconds, 3),
    } | _kept(sample, edited)


def object_psnr(sample: HOISample, edited: Tensor) -> list[float | None]:
    """Compare an edit's object with the clip's: PSNR by thirds, None where it is not seen."""
    error = squared_error(edited, sample.clip.frames)
    listed: list[float | None] = _numbers(thirds(region_psnr(error, sample.object_mask)))
    return listed


def _kept(sample: HOISample, edited: Tensor) -> dict[str, int]:
    """Put the background back, as an edit with keep_background does, and say what it misses."""
    size = (sample.clip.height, sample.clip.width)
    corners = torch.zeros(sample.clip.num_frames, 2, dtype=torch.int64)
    whole = Crop(frame=size, box=size, corners=corners, size=size)
    kept = paste(sample.clip.frames, edited, sample.mask, whole, keep_background=True)
    difference = (kept.int() - sample.clip.frames.int()).abs().amax(-1)
    return {
        "outside_difference": _largest(difference, ~sample.mask),
        "beyond_edge_difference": _largest(difference, ~grown(sample.mask, _EDGE)),
    }


def codec_row(base: Base, sample: HOISample, *, pictures: list[Tensor]) -> dict[str, Any]:
    """Measure what the codec alone makes of a clip, and how often a true object is found.

    Returns:
        psnr, ssim, of all pixels; object_psnr by thirds; true_found, codec_found by thirds.
    """
    truth, region = sample.clip.frames, sample.object_mask
    assert region is not None
    with torch.inference_mode():
        coded = base.decode(base.encode(truth))
    error = squared_error(coded, truth)
    return {
        "psnr": _numbers(region_psnr(error).mean()),
        "ssim": _numbers(region_mean(ssim_map(coded, truth)).mean()),
        "object_psnr": object_psnr(sample, coded),
        "true_found": _numbers(found(truth, region, pictures)),
        "codec_found": _numbers(found(coded, region, pictures)),
    }


def _numbers(values: Tensor) -> Any:
    """Give a tensor as plain numbers, None for NaN, as JSON has none."""
    listed = values.double().tolist()
    if isinstance(listed, float):
        return None if listed != listed else round(listed, 4)
    return [None if value != value else round(value, 4) for value in listed]


def _largest(values: Tensor, region: Tensor) -> int:
    return int(values[region].max()) if region.any() else 0
