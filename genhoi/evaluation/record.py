"""The files of an evaluation: every frame as CSV, summaries as JSON."""

from __future__ import annotations

import csv
import json
import math
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import genhoi_kernels
from genhoi.evaluation.columns import COLUMNS
from genhoi.evaluation.measure import CaseResult, Evaluation
from genhoi.evaluation.metrics import PSNR_CAP
from genhoi.evaluation.summary import Summary, over_cases, summarise
from genhoi.media import atomic_path

__all__ = ["HOW_TO_READ", "as_record", "write_curves", "write_record"]

HOW_TO_READ = (
    "How to read it: edges inside the mask say whether what was painted has the truth's "
    "structure. The truth has 1; the same object shifted by a pixel about 0.9, by two 0.7 to 0.8; "
    "blurred (sigma 3) 0.5 to 0.7; in blocks of 8 pixels 0.3 to 0.5; one colour, another pattern "
    "or another object below 0.3. SSIM orders them alike, but less far apart. Read each number "
    "beside the baselines and the truth's own: an edit no better than the unedited source has not "
    "put the object there. Colours ask whether the picture's colours are there, not where. Drift "
    "is how far the object's mean colour moves from its first frames: 2 is just seen, 10 is "
    "another shade. Then look at the clip."
)

_DEFINITIONS = {
    "psnr": "-10 log10(mean squared error over the region's pixels and R, G, B / 255^2) of each "
    f"frame, in dB; identical pixels count as {PSNR_CAP:g} dB; means are over frames",
    "ssim": "Wang et al. 2004: Gaussian window 11, sigma 1.5, data range 255, mean of R, G, B; the "
    "map over every pixel of the frame, averaged over the region",
    "colour": "intersection of CIELAB histograms of the object's region and of its picture, 0 to 1",
    "edges": "(2 sum g.t + c n) / (sum |g|^2 + sum |t|^2 + c n) over the region's n pixels; g, t: "
    "gradients of the lumas of result and truth, smoothed by a Gaussian of sigma 1; c = 0.25",
    "drift": "Delta E (CIE 1976) between the mean colour of the object's region in each frame and "
    "in the first frames; lower is better, but compare with the truth's",
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
    """Collect everything but the curves, as plain JSON values.

    Args:
        evaluation: of `evaluate`.
        inputs: name of a case -> its files, for the record.
        repeat: the command line that does it again.
    """
    cases = []
    summaries: dict[str, list[Summary]] = {}
    for case in evaluation.cases:
        numbers = _numbers(case)
        for name, summary in numbers.items():
            summaries.setdefault(name, []).append(summary)
        files = None if inputs is None else inputs[case.name]
        cases.append(_case_record(case, numbers, files))
    return {
        "genhoi": genhoi_kernels.__version__,
        "repeat": repeat,
        "definitions": _DEFINITIONS,
        "how_to_read_it": HOW_TO_READ,
        "cases": cases,
        "baselines": [_case_record(case, _numbers(case), None) for case in evaluation.baselines],
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


def _numbers(case: CaseResult) -> dict[str, Summary]:
    return {name: summarise(name, curve) for name, curve in case.curves.items()}


def _case_record(
    case: CaseResult, numbers: Mapping[str, Summary], files: Mapping[str, Any] | None
) -> dict[str, Any]:
    frames, height, width = case.size
    return {
        "name": case.name,
        "frames": frames,
        "height": height,
        "width": width,
        "inputs": files,
        "notes": case.notes,
        "drift": {name: found.as_record() for name, found in case.drift.items()},
        "metrics": {name: vars(summary) for name, summary in numbers.items()},
    }


def write_curves(path: Path, evaluation: Evaluation, *, overwrite: bool = False) -> None:
    """Write a CSV with a row for each frame of a case or baseline; empty where there is no value.

    The file is written atomically.

    Raises:
        FileExistsError: the target exists and `overwrite` is False.
    """
    with atomic_path(path, overwrite=overwrite) as temporary:
        with temporary.open("w", encoding="utf-8", newline="") as opened:
            writer = csv.writer(opened)
            writer.writerow(["case", "frame", *COLUMNS])
            for case in (*evaluation.cases, *evaluation.baselines):
                curves = {name: curve.tolist() for name, curve in case.curves.items()}
                for frame in range(case.size[0]):
                    cells = (
                        curves[name][frame] if name in curves else math.nan for name in COLUMNS
                    )
                    writer.writerow(
                        [case.name, frame, *("" if math.isnan(x) else f"{x:.8g}" for x in cells)]
                    )


def write_record(path: Path, record: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Write what `as_record` collected as JSON, atomically.

    Raises:
        FileExistsError: the target exists and `overwrite` is False.
    """
    with atomic_path(path, overwrite=overwrite) as temporary:
        text = json.dumps(record, indent=2, allow_nan=False, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def _spreads(summaries: Sequence[Summary]) -> dict[str, Any]:
    spreads = {
        name: over_cases(getattr(summary, name) for summary in summaries)
        for name in ("mean", "first", "middle", "last", "worst")
    }
    return {name: None if spread is None else vars(spread) for name, spread in spreads.items()}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
