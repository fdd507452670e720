"""Tables of the study: one CSV for each question."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ablation.plan import VARIANTS
from benchmarks.ablation.results import PARTS, Measured, mean_error, read_measured, thirds
from genhoi.media.media import atomic_path

__all__ = ["collect_tables", "write_table"]

Row = dict[str, Any]
Place = tuple[int, int]  # seed, clip
_PAIRS = (
    *((variant, "fixed") for variant in ("alone", *VARIANTS) if variant != "fixed"),
    ("paper", "middle"), ("paper", "release"), ("paper", "vace"), ("mask", "paper"),
    ("mask+flow", "mask"), ("paper-v", "fixed-v"), ("paper-video", "fixed-video"),
    ("mask-video", "paper-video"),
)  # fmt: skip
_MEANS = (
    "object_ssim", "hand_psnr", "background_psnr", "background_change", "far_change", "swap_object",
    "swap_hand", "swap_background", "swap_far", "colour", "texture",
)  # fmt: skip


def collect_tables(out: Path) -> list[Path]:
    """Write all tables and plots into out/results; what is not measured yet is left out.

    Rows of clips.csv that lie there from other seeds are kept and count in paired.csv, so that
    seeds may be run on several machines, one after the other.
    """
    from benchmarks.ablation.figures import draw_figures

    measured = read_measured(out)
    folder = out / "results"
    clips = _merged(folder / "clips.csv", list(_clips(measured)))
    paired = list(_paired(clips))
    written = [
        write_table(folder / f"{name}.csv", rows)
        for name, rows in (
            ("summary", _summary(measured)),
            ("curves", _curves(measured)),
            ("clips", clips),
            ("paired", paired),
            ("mass", _mass(measured)),
        )
    ]
    return [path for path in written if path is not None] + draw_figures(folder, measured, paired)


def _label(m: Measured, given: str) -> Row:
    return {
        "regime": m.regime, "variant": m.variant, "seed": m.seed, "step": m.step,
        "length": "twice" if m.long else "trained", "first_frame": given,
    }  # fmt: skip


def _summary(measured: Iterable[Measured]) -> Iterator[Row]:
    """One row for each evaluation: means over clips, standard errors of the PSNR."""
    for m in measured:
        for given in m.given:
            psnr = m.arrays[f"{given}/object_psnr"]
            row = _label(m, given) | {"clips": len(psnr)}
            for name, values in thirds(psnr).items():
                row[f"object_psnr_{name}"], row[f"object_psnr_{name}_error"] = mean_error(values)
            worst = [float(np.nanmin(x)) for x in psnr if not np.isnan(x).all()]
            row["object_psnr_worst_frame"], _ = mean_error(worst)
            for name, values in thirds(m.arrays[f"{given}/object_ssim"]).items():
                row[f"object_ssim_{name}"], _ = mean_error(values)
            for name in _MEANS[1:]:
                values = m.arrays.get(f"{given}/{name}")
                row[name] = "" if values is None else mean_error(thirds(values)["all"])[0]
            yield row


def _curves(measured: Sequence[Measured]) -> Iterator[Row]:
    """PSNR and SSIM of the object's region in every frame, after the whole adaptation.

    A clip's value is its mean over the seeds; errors are over clips.
    """
    groups: dict[tuple[str, str, bool], list[Measured]] = defaultdict(list)
    for m in _last(measured):
        groups[m.regime, m.variant, m.long].append(m)
    for runs in groups.values():
        for given in runs[0].given:
            psnr, ssim = (
                np.mean([m.arrays[f"{given}/object_{name}"] for m in runs], axis=0)
                for name in ("psnr", "ssim")
            )
            label = _label(runs[0], given) | {"seed": " ".join(str(m.seed) for m in runs)}
            for frame in range(psnr.shape[1]):
                mean, error = mean_error(psnr[:, frame])
                yield label | {
                    "frame": frame, "object_psnr": mean, "object_psnr_error": error,
                    "object_ssim": mean_error(ssim[:, frame])[0],
                }  # fmt: skip


def _last(measured: Sequence[Measured]) -> list[Measured]:
    """Evaluations after the whole adaptation, and those of bases alone."""
    final = {m.regime: 0 for m in measured}
    for m in measured:
        final[m.regime] = max(final[m.regime], m.step)
    return [m for m in measured if m.variant == "alone" or m.step == final[m.regime]]


def _clips(measured: Iterable[Measured]) -> Iterator[Row]:
    """Each clip's object PSNR at each evaluation: what `_paired` is computed from."""
    for m in measured:
        for given in m.given:
            parts = thirds(m.arrays[f"{given}/object_psnr"])
            for clip in range(len(parts["all"])):
                yield _label(m, given) | {"clip": clip} | {k: v[clip] for k, v in parts.items()}


def _paired(clips: Iterable[Row]) -> Iterator[Row]:
    """Differences of two variants on the same bases and the same clips.

    A clip's difference is its mean over the seeds there are for both; errors are over clips.
    """
    groups: dict[tuple[str, ...], dict[str, dict[Place, Row]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    for row in clips:
        key = tuple(str(row[name]) for name in ("regime", "step", "length", "first_frame"))
        groups[key][row["variant"]][int(row["seed"]), int(row["clip"])] = row
    for (regime, step, length, given), by_variant in sorted(groups.items()):
        # A base alone has no steps.
        alone = groups.get((regime, "0", length, given), {}).get("alone", {})
        for variant, minus in _PAIRS:
            ours = alone if variant == "alone" else by_variant.get(variant, {})
            found = _difference(ours, by_variant.get(minus, {}))
            if found:
                yield {
                    "regime": regime, "variant": variant, "minus": minus, "step": step,
                    "length": length, "first_frame": given,
                } | found  # fmt: skip


def _difference(ours: dict[Place, Row], theirs: dict[Place, Row]) -> Row:
    """Of two variants' rows; empty where they have no clip in common."""
    common = sorted(set(ours) & set(theirs))
    if not common:
        return {}
    found: Row = {
        "seeds": " ".join(map(str, sorted({seed for seed, _ in common}))),
        "clips": len({clip for _, clip in common}),
    }
    for part in (*PARTS, "all"):
        by_clip: dict[int, list[float]] = defaultdict(list)
        for place in common:
            by_clip[place[1]].append(float(ours[place][part]) - float(theirs[place][part]))
        differences = [float(np.mean(values)) for values in by_clip.values()]
        found[f"{part}_db"], found[f"{part}_error"] = mean_error(differences)
    return found


def _mass(measured: Iterable[Measured]) -> Iterator[Row]:
    """Share of the attention on the reference by head and latent frame, mean over layers."""
    for m in measured:
        mass = m.arrays.get("none/mass")
        if mass is None:
            continue
        for (head, frame), share in np.ndenumerate(mass.mean(0)):
            yield _label(m, "none") | {"head": head, "latent_frame": frame, "share": share}


def _merged(path: Path, rows: list[Row]) -> list[Row]:
    """Rows of a CSV that belong to other runs, and the new ones."""
    if not path.is_file():
        return rows

    def run(row: Row) -> tuple[str, str, str]:
        return str(row["regime"]), str(row["variant"]), str(row["seed"])

    new = {run(row) for row in rows}
    with path.open(newline="") as file:
        kept: list[Row] = [row for row in csv.DictReader(file) if run(row) not in new]
    return sorted(kept + rows, key=run)


def write_table(path: Path, rows: Iterable[Row]) -> Path | None:
    """Write rows as a CSV; None, and no file, where there is no row."""
    rows = list(rows)
    if not rows:
        return None
    with (
        atomic_path(path, overwrite=True) as temporary,
        temporary.open("w", newline="") as file,
    ):
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({k: _short(v) for k, v in row.items()} for row in rows)
    return path


def _short(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, (float, np.floating)) else value
