"""Edited clips measured against their ground truths, frame by frame.

Every frame is compared, and nothing is cut or scaled here. Each metric gives a curve, a value a
frame; `genhoi.evaluation.columns` names them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genhoi.evaluation.case import Case
from genhoi.evaluation.columns import COLUMNS
from genhoi.evaluation.drift import Drift, drift
from genhoi.evaluation.frechet import frechet_of_features
from genhoi.evaluation.learned_metrics import REASONS, Models, on_grey
from genhoi.evaluation.metrics import region_mean, region_psnr, squared_error, ssim_map
from genhoi.evaluation.object_metrics import colour_similarity, object_pixels
from genhoi.evaluation.structure import edge_similarity

__all__ = ["CaseResult", "Evaluation", "WorstFrame", "evaluate"]

_CHUNK = 8
_NO_PICTURE = "not measured: no object's picture was given (--object)"

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class WorstFrame:
    """The frame whose edges inside the mask are least like the truth's, to be looked at.

    Args:
        index: which.
        edges: of `edge_similarity`, inside the mask.
        result, truth: uint8 [H, W, 3].
        mask: bool [H, W].
    """

    index: int
    edges: float
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
        drift: of the object's region, "result" and "truth".
        worst: None if the mask is empty everywhere.
        notes: sentences for people.
    """

    name: str
    size: tuple[int, int, int]
    curves: Mapping[str, Tensor]
    object_mask: bool
    drift: Mapping[str, Drift]
    worst: WorstFrame | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Evaluation:
    """What was measured of a set of cases.

    Args:
        cases: in the order they came.
        baselines: other clips in the result's place, to compare the numbers with.
        fvd: Fréchet video distance of all results from all truths; None: not measured.
        not_measured: metric -> why, in words.
    """

    cases: tuple[CaseResult, ...]
    fvd: float | None
    not_measured: Mapping[str, str]
    baselines: tuple[CaseResult, ...] = ()


def evaluate(
    cases: Iterable[Case],
    *,
    baselines: Iterable[Case] = (),
    models: Models | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure cases, one after the other; an iterator that reads them holds only one in memory.

    Args:
        cases: at least one, each with a name of its own.
        baselines: cases with other clips as their results, such as the unedited source. They are
            measured alike, and count in no mean.
        models: of the learned metrics (`learned_metrics.load_models`); None: none of them.
        progress: called with a case's name, its frames done and its frames.

    Raises:
        ValueError: no case, a name twice, or frames that a model does not take.

    Example:
        >>> import genhoi, torch
        >>> from genhoi.evaluation import Case
        >>> truth = torch.full((3, 32, 32, 3), 100, dtype=torch.uint8)
        >>> mask = torch.zeros(3, 32, 32, dtype=torch.bool)
        >>> mask[:, 8:24, 8:24] = True
        >>> case = Case("lighter", genhoi.Clip(truth + 10), genhoi.Clip(truth), mask)
        >>> curves = genhoi.evaluate([case]).cases[0].curves
        >>> round(float(curves["psnr_frame"][0]), 2), float(curves["edges_mask"][0])
        (28.13, 1.0)
    """
    models = models or Models()
    results: list[CaseResult] = []
    videos: list[tuple[Tensor, Tensor]] = []
    for case in cases:
        _check_name(case, results)
        results.append(_measure(case, models, progress))
        if models.video is not None:
            videos.append((models.video(case.result.frames), models.video(case.truth.frames)))
    if not results:
        raise ValueError("cases: got none, want at least one")
    others: list[CaseResult] = []
    for case in baselines:
        _check_name(case, [*results, *others])
        others.append(_measure(case, models, progress))
    measured = {COLUMNS[name].metric for result in results for name in result.curves}
    missing = {
        metric: REASONS.get(metric, _NO_PICTURE)
        for metric in ("colour", "lpips", "clip")
        if metric not in measured
    }
    fvd = None
    if len(videos) >= 2:
        made, true = (torch.stack(features) for features in zip(*videos, strict=True))
        fvd = frechet_of_features(made, true)
    else:
        missing["fvd"] = REASONS["fvd"] + (f"; there is {len(videos)}" if videos else "")
    return Evaluation(tuple(results), fvd, missing, tuple(others))


def _check_name(case: Case, others: Sequence[CaseResult]) -> None:
    if any(case.name == other.name for other in others):
        raise ValueError(f"cases: got the name {case.name} twice, want one for each")


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
                if wanted is not None and models.clip is not None:
                    curves["clip" + suffix] = _clip_similarity(models, frames, inside, wanted)
        parts.append(curves)
        if progress is not None:
            progress(case.name, min(begin + _CHUNK, total), total)
    inside = case.regions()["object"]
    assert inside is not None
    moved = {"": drift(case.result.frames, inside), "_truth": drift(case.truth.frames, inside)}
    known = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    known |= {f"drift{suffix}": found.colours for suffix, found in moved.items()}
    curves = {name: known[name] for name in COLUMNS if name in known}
    notes = list(case.notes)
    if case.object_mask is None:
        notes.append("No object mask: the object's region is the mask's.")
    return CaseResult(
        name=case.name,
        size=(total, case.truth.height, case.truth.width),
        curves=curves,
        object_mask=case.object_mask is not None,
        drift={"result": moved[""], "truth": moved["_truth"]},
        worst=_worst(case, curves["edges_mask"]),
        notes=tuple(notes),
    )


def _against_truth(
    result: Tensor, truth: Tensor, regions: Mapping[str, Tensor | None], models: Models
) -> dict[str, Tensor]:
    error, similar = squared_error(result, truth), ssim_map(result, truth)
    far = None if models.lpips is None else models.lpips(result, truth)
    curves = {}
    for name, region in regions.items():
        if f"psnr_{name}" in COLUMNS:
            curves[f"psnr_{name}"] = region_psnr(error, region)
        curves[f"ssim_{name}"] = region_mean(similar, region)
        curves[f"edges_{name}"] = edge_similarity(result, truth, region)
        if far is not None:
            curves[f"lpips_{name}"] = region_mean(far, region)
    return curves


def _clip_similarity(models: Models, frames: Tensor, region: Tensor, wanted: Tensor) -> Tensor:
    """Compare the embeddings of each frame's region and of the picture; cosines, float64 [F]."""
    assert models.clip is not None
    cosines = torch.full((len(frames),), math.nan, dtype=torch.float64)
    seen = region.flatten(1).any(dim=1).nonzero()[:, 0].tolist()
    if seen:
        crops = [on_grey(frames[i], region[i]) for i in seen]
        cosines[seen] = (models.clip(crops) @ wanted).double()
    return cosines


def _worst(case: Case, edges: Tensor) -> WorstFrame | None:
    if edges.isnan().all():
        return None
    index = int(edges.nan_to_num(nan=math.inf).argmin())
    return WorstFrame(
        index=index,
        edges=float(edges[index]),
        result=case.result.frames[index].clone(),
        truth=case.truth.frames[index].clone(),
        mask=case.mask[index].clone(),
    )
