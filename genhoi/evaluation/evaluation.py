"""Edited clips beside their ground truths: what `genhoi eval` measures, summarised and written.

Every frame is compared, and nothing is cut or scaled here. Each metric gives a curve, a value a
frame; `COLUMNS` names them. A mean is over the frames that have a value.
"""

from __future__ import annotations

import csv
import json
import math
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import genhoi_kernels
from genhoi.evaluation.learned_metrics import REASONS, Models, on_grey
from genhoi.evaluation.metrics import (
    PSNR_CAP,
    colour_similarity,
    frechet_of_features,
    object_pixels,
    region_mean,
    region_psnr,
    squared_error,
    ssim_map,
    texture_similarity,
    thirds,
)
from genhoi.media.media import Clip, atomic_path

__all__ = [
    "COLUMNS",
    "REGIONS",
    "Case",
    "CaseResult",
    "Column",
    "Evaluation",
    "Spread",
    "Summary",
    "WorstFrame",
    "as_record",
    "evaluate",
    "over_cases",
    "summarise",
    "write_curves",
    "write_record",
]

REGIONS = {
    "frame": "whole frame",
    "mask": "inside mask",
    "object": "object",
    "background": "outside mask",
}
_CHUNK = 8
_NO_PICTURE = "not measured: no object's picture was given (--object)"

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Column:
    """One curve of an evaluation.

    Args:
        metric: psnr, ssim, colour, texture, lpips or clip.
        title: of the metric, for people.
        where: region, or whose.
        digits: after the point, where people read it.
        lower_is_better: so the worst frame is the one with the highest value.
    """

    metric: str
    title: str
    where: str
    digits: int
    lower_is_better: bool = False


def _by_region(metric: str, title: str, digits: int, lower: bool = False) -> dict[str, Column]:
    return {
        f"{metric}_{name}": Column(metric, title, words, digits, lower)
        for name, words in REGIONS.items()
    }


def _by_clip(metric: str, title: str) -> dict[str, Column]:
    return {
        metric: Column(metric, title, "result, picture", 3),
        f"{metric}_truth": Column(metric, title, "truth, picture", 3),
    }


COLUMNS: dict[str, Column] = {
    **_by_region("psnr", "PSNR, dB", 2),
    **_by_region("ssim", "SSIM", 3),
    **_by_clip("colour", "colours"),
    **_by_clip("texture", "texture"),
    **_by_region("lpips", "LPIPS", 3, lower=True),
    **_by_clip("clip", "CLIP"),
}


@dataclass(frozen=True)
class Case:
    """A result with its ground truth, of one length and size.

    Args:
        name: unique in its set.
        result, truth: F frames of H x W pixels.
        mask: bool [F, H, W], where the result was generated.
        object: uint8 [h, w, 3], picture of the object, on grey 128; None: not compared with it.
        object_mask: bool [F, H, W], where the truth shows the object; None: the mask's region
            stands for it.
        notes: sentences on how the case was made from its files.

    Raises:
        TypeError, ValueError: something has another type, length or size.
    """

    name: str
    result: Clip
    truth: Clip
    mask: Tensor
    object: Tensor | None = None
    object_mask: Tensor | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that everything belongs together."""
        shape = tuple(self.truth.frames.shape)
        if tuple(self.result.frames.shape) != shape:
            raise ValueError(
                f"case {self.name}: the result's frames are {tuple(self.result.frames.shape)}, "
                f"want {shape} as the truth's; nothing is cut or scaled"
            )
        for name in ("mask", "object_mask"):
            mask = getattr(self, name)
            if mask is None and name != "mask":
                continue
            if mask.dtype != torch.bool:
                raise TypeError(f"case {self.name}: {name}: got {mask.dtype}, want torch.bool")
            if tuple(mask.shape) != shape[:3]:
                raise ValueError(
                    f"case {self.name}: {name}: got {tuple(mask.shape)}, want {shape[:3]}"
                )

    def regions(self) -> dict[str, Tensor | None]:
        """Name in `REGIONS` -> bool [F, H, W], None for the whole frame."""
        inside = self.mask if self.object_mask is None else self.object_mask
        return {"frame": None, "mask": self.mask, "object": inside, "background": ~self.mask}


@dataclass(frozen=True)
class WorstFrame:
    """The frame with the lowest PSNR inside the mask, to be looked at.

    Args:
        index: which.
        psnr: inside the mask, dB.
        result, truth: uint8 [H, W, 3].
        mask: bool [H, W].
    """

    index: int
    psnr: float
    result: Tensor
    truth: Tensor
    mask: Tensor


@dataclass(frozen=True)
class CaseResult:
    """What was measured of a case.

    Args:
        name: the case's.
        size: (F, H, W).
        curves: name in `COLUMNS` -> float64 [F], NaN where a frame has nothing to measure; what was
            not measured is missing.
        object_mask: whether there was one; else "object" is the mask's region.
        worst: None if the mask is empty everywhere.
        notes: sentences for people.
    """

    name: str
    size: tuple[int, int, int]
    curves: Mapping[str, Tensor]
    object_mask: bool
    worst: WorstFrame | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Evaluation:
    """What was measured of a set of cases.

    Args:
        cases: in the order they came.
        fvd: Fréchet video distance of all results from all truths; None: not measured.
        not_measured: metric -> why, in words.
    """

    cases: tuple[CaseResult, ...]
    fvd: float | None
    not_measured: Mapping[str, str]


def evaluate(
    cases: Iterable[Case], *, models: Models | None = None, progress: Progress | None = None
) -> Evaluation:
    """Measure cases, one after the other; an iterator that reads them holds only one in memory.

    Args:
        cases: at least one, each with a name of its own.
        models: the learned metrics' (`learned_metrics.load_models`); None: none of them.
        progress: called with a case's name, its frames done and its frames.

    Raises:
        ValueError: no case, a name twice, or frames that a model does not take.
    """
    models = models or Models()
    found: list[CaseResult] = []
    videos: list[tuple[Tensor, Tensor]] = []
    for case in cases:
        if any(case.name == other.name for other in found):
            raise ValueError(f"cases: got the name {case.name} twice, want one for each")
        found.append(_measure(case, models, progress))
        if models.video is not None:
            videos.append((models.video(case.result.frames), models.video(case.truth.frames)))
    if not found:
        raise ValueError("cases: got none, want at least one")
    measured = {COLUMNS[name].metric for case in found for name in case.curves}
    missing = {
        metric: REASONS.get(metric, _NO_PICTURE)
        for metric in ("colour", "texture", "lpips", "clip")
        if metric not in measured
    }
    fvd = None
    if len(videos) >= 2:
        results, truths = (torch.stack(features) for features in zip(*videos, strict=True))
        fvd = frechet_of_features(results, truths)
    else:
        missing["fvd"] = REASONS["fvd"] + (f"; there is {len(videos)}" if videos else "")
    return Evaluation(tuple(found), fvd, missing)


def _measure(case: Case, models: Models, progress: Progress | None) -> CaseResult:
    total = case.truth.num_frames
    shown = case.object
    wanted = None
    if shown is not None and models.clip is not None:
        wanted = models.clip([on_grey(shown, object_pixels(shown))])[0]
    parts: list[dict[str, Tensor]] = []
    for begin in range(0, total, _CHUNK):
        part = slice(begin, begin + _CHUNK)
        result, truth = case.result.frames[part], case.truth.frames[part]
        regions = {
            name: None if region is None else region[part]
            for name, region in case.regions().items()
        }
        curves = _against_truth(result, truth, regions, models)
        inside = regions["object"]
        if shown is not None and inside is not None:
            for suffix, frames in (("", result), ("_truth", truth)):
                curves["colour" + suffix] = colour_similarity(frames, inside, shown)
                curves["texture" + suffix] = texture_similarity(frames, inside, shown)
                if wanted is not None and models.clip is not None:
                    curves["clip" + suffix] = _clip_similarity(models, frames, inside, wanted)
        parts.append(curves)
        if progress is not None:
            progress(case.name, min(begin + _CHUNK, total), total)
    curves = {
        name: torch.cat([part[name] for part in parts]) for name in COLUMNS if name in parts[0]
    }
    notes = list(case.notes)
    if case.object_mask is None:
        notes.append("No object mask: the object's region is the mask's.")
    return CaseResult(
        name=case.name,
        size=(total, case.truth.height, case.truth.width),
        curves=curves,
        object_mask=case.object_mask is not None,
        worst=_worst(case, curves["psnr_mask"]),
        notes=tuple(notes),
    )


def _against_truth(
    result: Tensor, truth: Tensor, regions: Mapping[str, Tensor | None], models: Models
) -> dict[str, Tensor]:
    error, similar = squared_error(result, truth), ssim_map(result, truth)
    far = None if models.lpips is None else models.lpips(result, truth)
    curves = {}
    for name, region in regions.items():
        curves[f"psnr_{name}"] = region_psnr(error, region)
        curves[f"ssim_{name}"] = region_mean(similar, region)
        if far is not None:
            curves[f"lpips_{name}"] = region_mean(far, region)
    return curves


def _clip_similarity(models: Models, frames: Tensor, region: Tensor, wanted: Tensor) -> Tensor:
    """Cosine of the embeddings of each frame's region and of the picture, float64 [F]."""
    assert models.clip is not None
    found = torch.full((len(frames),), math.nan, dtype=torch.float64)
    seen = region.flatten(1).any(dim=1).nonzero()[:, 0].tolist()
    if seen:
        crops = [on_grey(frames[i], region[i]) for i in seen]
        found[seen] = (models.clip(crops) @ wanted).double()
    return found


def _worst(case: Case, psnr: Tensor) -> WorstFrame | None:
    if psnr.isnan().all():
        return None
    index = int(psnr.nan_to_num(nan=math.inf).argmin())
    return WorstFrame(
        index=index,
        psnr=float(psnr[index]),
        result=case.result.frames[index].clone(),
        truth=case.truth.frames[index].clone(),
        mask=case.mask[index].clone(),
    )


# ---------------------------------------------------------------------------------------- summaries


@dataclass(frozen=True)
class Summary:
    """A curve in a few numbers; None where there is no value.

    Args:
        mean: over all frames that have a value.
        first, middle, last: the same for the thirds of the clip.
        worst: the lowest value, of distances the highest.
        worst_frame: where that is, from 0.
        frames: that have a value.
        empty: frames whose region is empty, left out.
        capped: frames with identical pixels, whose infinite PSNR counts as `PSNR_CAP`.
    """

    mean: float | None
    first: float | None
    middle: float | None
    last: float | None
    worst: float | None
    worst_frame: int | None
    frames: int
    empty: int
    capped: int


@dataclass(frozen=True)
class Spread:
    """One number of every case.

    Args:
        mean: over the cases that have it.
        standard_error: of that mean; None with fewer than 2 cases.
        cases: how many have it.
    """

    mean: float
    standard_error: float | None
    cases: int


def summarise(name: str, curve: Tensor) -> Summary:
    """Summarise a curve float64 [F] of the column `name`."""
    known = ~curve.isnan()
    count = int(known.sum())
    worst_frame = worst = None
    if count:
        sign = -1 if COLUMNS[name].lower_is_better else 1
        worst_frame = int((sign * curve).nan_to_num(nan=math.inf).argmin())
        worst = float(curve[worst_frame])
    capped = int((curve >= PSNR_CAP).sum()) if COLUMNS[name].metric == "psnr" else 0
    first, middle, last = (_number(value) for value in thirds(curve))
    return Summary(
        mean=_number(curve.nanmean()),
        first=first,
        middle=middle,
        last=last,
        worst=worst,
        worst_frame=worst_frame,
        frames=count,
        empty=len(curve) - count,
        capped=capped,
    )


def over_cases(values: Iterable[float | None]) -> Spread | None:
    """Mean and standard error of one number of every case; None if no case has it."""
    known = torch.tensor([x for x in values if x is not None], dtype=torch.float64)
    if not len(known):
        return None
    error = float(known.std() / math.sqrt(len(known))) if len(known) > 1 else None
    return Spread(float(known.mean()), error, len(known))


def _number(value: Tensor) -> float | None:
    return None if value.isnan() else float(value)


# ------------------------------------------------------------------------------------------ writing

_DEFINITIONS = {
    "psnr": "-10 log10(mean squared error over the region's pixels and R, G, B / 255^2) of each "
    f"frame, in dB; identical pixels count as {PSNR_CAP:g} dB; means are over frames",
    "ssim": "Wang et al. 2004: Gaussian window 11, sigma 1.5, data range 255, mean of R, G, B; the "
    "map over every pixel of the frame, averaged over the region",
    "colour": "intersection of CIELAB histograms of the object's region and of its picture, 0 to 1",
    "texture": "intersection of gradient histograms (strength, orientation) of the object's region "
    "and of its picture, 0 to 1",
    "lpips": "LPIPS map, averaged over the region; lower is better",
    "clip": "cosine of the CLIP embeddings of the object's region on grey and of its picture",
    "fvd": "squared Frechet distance of features of all whole clips, one sample a clip; "
    "biased upwards for few clips",
    "_truth": "the same for the ground truth: what a perfect result would have",
    "thirds": "of a clip's frames, by their number",
    "left out": "frames whose region is empty are in no mean; counted as empty",
}


def as_record(
    evaluation: Evaluation,
    *,
    inputs: Mapping[str, Mapping[str, Any]] | None = None,
    repeat: str | None = None,
) -> dict[str, Any]:
    """Everything but the curves, as plain JSON values.

    Args:
        evaluation: of `evaluate`.
        inputs: name of a case -> its files, for the record.
        repeat: the command line that does it again.
    """
    cases = []
    summaries: dict[str, list[Summary]] = {}
    for case in evaluation.cases:
        numbers = {name: summarise(name, curve) for name, curve in case.curves.items()}
        for name, summary in numbers.items():
            summaries.setdefault(name, []).append(summary)
        frames, height, width = case.size
        cases.append(
            {
                "name": case.name,
                "frames": frames,
                "height": height,
                "width": width,
                "inputs": None if inputs is None else inputs[case.name],
                "notes": case.notes,
                "metrics": {name: vars(summary) for name, summary in numbers.items()},
            }
        )
    return {
        "genhoi": genhoi_kernels.__version__,
        "repeat": repeat,
        "definitions": _DEFINITIONS,
        "cases": cases,
        "mean_over_cases": {
            name: _spreads(summaries[name]) for name in COLUMNS if name in summaries
        },
        "fvd": evaluation.fvd,
        "not_measured": dict(evaluation.not_measured),
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            **{name: _version(name) for name in ("numpy", "av", "transformers", "lpips")},
            "machine": f"{platform.system()} {platform.machine()}",
        },
    }


def write_curves(path: Path, evaluation: Evaluation, *, overwrite: bool = False) -> None:
    """Write a CSV with a row for each case and frame; empty where there is no value, atomically.

    Raises:
        FileExistsError: the target exists and `overwrite` is False.
    """
    with atomic_path(path, overwrite=overwrite) as temporary:
        with temporary.open("w", encoding="utf-8", newline="") as opened:
            writer = csv.writer(opened)
            writer.writerow(["case", "frame", *COLUMNS])
            for case in evaluation.cases:
                curves = {name: curve.tolist() for name, curve in case.curves.items()}
                for frame in range(case.size[0]):
                    cells = (
                        curves[name][frame] if name in curves else math.nan for name in COLUMNS
                    )
                    writer.writerow(
                        [case.name, frame, *("" if math.isnan(x) else f"{x:.8g}" for x in cells)]
                    )


def write_record(path: Path, record: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Write `as_record`'s as JSON, atomically.

    Raises:
        FileExistsError: the target exists and `overwrite` is False.
    """
    with atomic_path(path, overwrite=overwrite) as temporary:
        text = json.dumps(record, indent=2, allow_nan=False, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def _spreads(summaries: Sequence[Summary]) -> dict[str, Any]:
    found = {
        name: over_cases(getattr(summary, name) for summary in summaries)
        for name in ("mean", "first", "middle", "last", "worst")
    }
    return {name: None if spread is None else vars(spread) for name, spread in found.items()}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
