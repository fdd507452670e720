"""Plots of the study."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ablation.plan import VARIANTS
from benchmarks.ablation.results import PARTS, Measured, thirds
from genhoi_kernels.files import whole_file

__all__ = ["draw_figures"]

_MAIN = ("alone", "fixed", "middle", "paper", "mask", "mask+flow", "vace")
_COLORS = {
    "alone": "0.55",
    "fixed": "tab:red",
    "middle": "tab:orange",
    "paper": "tab:blue",
    "release": "tab:cyan",
    "mask": "tab:green",
    "mask+flow": "tab:olive",
    "vace": "tab:purple",
}
_GAPS = {
    ("paper", "fixed"): "o-",
    ("paper-v", "fixed-v"): "o--",
    ("middle", "fixed"): "o-",
    ("mask", "fixed"): "o-",
    ("vace", "fixed"): "o-",
}
_GIVEN = {"first": "first frame given", "none": "no frame given"}


def draw_figures(
    folder: Path, measured: Sequence[Measured], paired: Sequence[dict[str, Any]]
) -> list[Path]:
    """Draw what the measurements allow.

    Args:
        folder: for the plots.
        measured: all evaluations.
        paired: rows of paired.csv.
    """
    out = []
    for regime in sorted({m.regime for m in measured}):
        own = [m for m in measured if m.regime == regime]
        out += [
            _over_frames(folder / f"frames-{regime}.png", own, regime),
            _over_steps(folder / f"steps-{regime}.png", own, regime),
            _gaps(folder / f"gaps-{regime}.png", paired, regime),
            _leakage(folder / f"leakage-{regime}.png", own, regime),
            _attention(folder / f"attention-{regime}.png", own, regime),
        ]
    return [path for path in out if path is not None]


def _about(variant: str) -> str:
    return "no reference" if variant == "alone" else VARIANTS[variant].about


def _last_step(measured: Iterable[Measured]) -> int:
    return max((m.step for m in measured), default=0)


def _pick(
    measured: Iterable[Measured], variant: str, step: int | None, long: bool
) -> list[Measured]:
    """List a variant's evaluations over all seeds; the base alone has only one, at step 0."""
    wanted = 0 if variant == "alone" else step
    return [
        m
        for m in measured
        if m.variant == variant and m.long == long and (wanted is None or m.step == wanted)
    ]


def _groups(
    measured: Sequence[Measured], variants: Iterable[str], step: int | None, long: bool
) -> Iterator[tuple[str, list[Measured], str]]:
    """Yield the variants that were measured, each with its evaluations and its label.

    The label says which seeds it has if it lacks some: levels differ from base to base.
    """
    everyone = _seeds(measured)
    for variant in variants:
        runs = _pick(measured, variant, step, long)
        if runs:
            only = "" if _seeds(runs) == everyone else f" ({_seeds(runs)} only)"
            yield variant, runs, _about(variant) + only


def _over_frames(path: Path, measured: Sequence[Measured], regime: str) -> Path | None:
    """Draw the object's PSNR in every frame, at the last step."""
    step = _last_step(measured)
    if not step:
        return None
    figure, axes = _figure(2, 2, (13, 8))
    for row, long in enumerate((False, True)):
        for column, given in enumerate(_GIVEN):
            ax = axes[row][column]
            for variant, runs, label in _groups(measured, _MAIN, step, long):
                curves = [np.nanmean(m.arrays[f"{given}/object_psnr"], 0) for m in runs]
                ax.plot(np.mean(curves, 0), color=_COLORS[variant], label=label)
            length = "twice the trained length" if long else "trained length"
            ax.set_title(f"{_GIVEN[given]}, {length}", fontsize=10)
            ax.set_xlabel("frame")
            ax.set_ylabel("object PSNR, dB")
            ax.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    figure.suptitle(f"{regime} base, {step} steps of adaptation, {_seeds(measured)}")
    return _save(path, figure)


def _over_steps(path: Path, measured: Sequence[Measured], regime: str) -> Path | None:
    """Draw the object's PSNR of each third of the clip over the steps."""
    if not _last_step(measured):
        return None
    figure, axes = _figure(2, 3, (14, 7.5))
    for row, given in enumerate(_GIVEN):
        for column, part in enumerate(PARTS):
            ax = axes[row][column]
            for variant, runs, label in _groups(measured, _MAIN[1:], None, False):
                steps = sorted({m.step for m in runs})
                values = [
                    np.mean([_third(m, given, part) for m in runs if m.step == s]) for s in steps
                ]
                ax.plot(steps, values, "o-", ms=3, color=_COLORS[variant], label=label)
            ax.set_title(f"{_GIVEN[given]}: {part} third", fontsize=10)
            _steps_axis(ax, {m.step for m in measured})
            ax.set_ylabel("object PSNR, dB")
    _legend_below(figure, axes[0][0])
    figure.suptitle(f"{regime} base, {_seeds(measured)}")
    return _save(path, figure)


def _steps_axis(ax: Any, steps: set[int]) -> None:
    ticks = sorted(steps)
    ax.set_xscale("symlog", linthresh=25)
    ax.set_xticks(ticks, [str(step) for step in ticks])
    ax.minorticks_off()
    ax.set_xlabel("steps of adaptation")
    ax.grid(alpha=0.3)


def _legend_below(figure: Any, ax: Any) -> None:
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)


def _third(m: Measured, given: str, part: str) -> float:
    return float(np.nanmean(thirds(m.arrays[f"{given}/object_psnr"])[part]))


def _gaps(path: Path, paired: Sequence[dict[str, Any]], regime: str) -> Path | None:
    """Draw by how much the other variants are ahead of frame -1, in each third over the steps."""
    own = [
        row
        for row in paired
        if row["regime"] == regime
        and row["length"] == "trained"
        and (row["variant"], row["minus"]) in _GAPS
    ]
    if not own:
        return None
    figure, axes = _figure(2, 3, (14, 7.5))
    for row, given in enumerate(_GIVEN):
        for column, part in enumerate(PARTS):
            ax = axes[row][column]
            ax.axhline(0, color="k", lw=1)
            for pair, style in _GAPS.items():
                rows = [
                    r
                    for r in own
                    if (r["variant"], r["minus"]) == pair and r["first_frame"] == given
                ]
                if not rows:
                    continue
                rows.sort(key=lambda r: int(r["step"]))
                values, errors = (
                    [float(r[f"{part}_{name}"]) for r in rows] for name in ("db", "error")
                )
                steps = [int(r["step"]) for r in rows]
                label = f"{_about(pair[0])} (seeds {rows[-1]['seeds']})"
                ax.errorbar(
                    steps,
                    values,
                    errors,
                    fmt=style,
                    ms=3,
                    capsize=2,
                    color=_COLORS[pair[0].removesuffix("-v")],
                    label=label,
                )
            ax.set_title(f"{_GIVEN[given]}: {part} third", fontsize=10)
            _steps_axis(ax, {int(r["step"]) for r in own})
            ax.set_ylabel("object PSNR above frame -1, dB")
    _legend_below(figure, axes[0][0])
    figure.suptitle(
        f"{regime} base: paired differences on the same clips and bases, standard errors over "
        f"clips; v adapted alone (dashed) against frame -1 with v alone"
    )
    return _save(path, figure)


def _leakage(path: Path, measured: Sequence[Measured], regime: str) -> Path | None:
    """Draw what changes, and where, when the reference is another object's."""
    measured = [m for m in measured if "first/swap_object" in m.arrays]  # at the end of a run
    if not measured:
        return None
    step = _last_step(measured)
    groups = list(_groups(measured, VARIANTS, step, False))
    figure, axes = _figure(1, 3, (13, 0.35 * len(groups) + 2.2))
    panels = {
        "swap_object": "object's region, another reference",
        "swap_far": "background in untouched tokens, another reference",
        "far_change": "the same, against the base alone",
    }
    for ax, (name, title) in zip(axes[0], panels.items(), strict=True):
        values = [
            np.mean([np.nanmean(m.arrays[f"first/{name}"]) for m in runs]) for _, runs, _ in groups
        ]
        colors = [_COLORS.get(variant, "0.7") for variant, _, _ in groups]
        ax.barh([label for _, _, label in groups], values, color=colors)
        for i, value in enumerate(values):
            ax.text(value, i, f" {value:.2f}", va="center", fontsize=8)
        ax.invert_yaxis()
        ax.margins(x=0.15)
        ax.set_title(f"{title}\nroot mean square, 0 to 255", fontsize=9)
        ax.tick_params(labelsize=8)
    for ax in axes[0][1:]:
        ax.set_yticklabels([])
    figure.suptitle(f"{regime} base, first frame given, {step} steps, {_seeds(measured)}")
    return _save(path, figure)


def _attention(path: Path, measured: Sequence[Measured], regime: str) -> Path | None:
    """Draw the reference's share of the attention by head and frame, before and after adapting."""
    names = [v for v in ("fixed", "middle", "paper", "vace") if _pick(measured, v, 0, False)]
    if not names:
        return None
    steps = [0, _last_step(measured)]
    figure, axes = _figure(len(names), 3, (13, 2.4 * len(names)))
    for row, variant in enumerate(names):
        _rope_response(axes[row][0], variant)
        for column, step in enumerate(steps, start=1):
            ax = axes[row][column]
            runs = [m for m in _pick(measured, variant, step, False) if "none/mass" in m.arrays]
            if not runs:
                ax.set_axis_off()
                continue
            mass = np.mean([m.arrays["none/mass"] for m in runs], 0).mean(0)
            for head, share in enumerate(mass):
                ax.plot(100 * share, lw=1, label=f"head {head}")
            ax.plot(100 * mass.mean(0), color="k", lw=2, label="mean")
            ax.set_title(f"{_about(variant)}: step {step}", fontsize=9)
            ax.set_ylabel("attention on the\nreference, %", fontsize=8)
            ax.set_ylim(bottom=0)
    for ax in axes[-1]:
        ax.set_xlabel("latent frame")
    axes[0][1].legend(fontsize=7)
    figure.suptitle(
        f"{regime} base, {_seeds(measured)}: mean over layers and hidden tokens; left: what "
        "rotation alone does to equal contents"
    )
    return _save(path, figure)


def _rope_response(ax: Any, variant: str) -> None:
    """Draw the mean cosine of a frame's query and the reference's key, over all frequencies."""
    from benchmarks.ablation.plan import LATENT_FRAMES, schedule_for
    from genhoi.bases.mosaic import MOSAIC_CONFIG
    from genhoi_kernels import head_frames

    head_dim, heads = MOSAIC_CONFIG["attention_head_dim"], MOSAIC_CONFIG["num_attention_heads"]
    assert isinstance(head_dim, int) and isinstance(heads, int)
    part = head_dim - 2 * (head_dim // 3 // 2 * 2)
    rates = np.array([10000 ** (-2 * i / part) for i in range(part // 2)])
    own = VARIANTS[variant]
    frames = (
        [-1.0] * heads
        if own.first_frame
        else head_frames(schedule_for(own, LATENT_FRAMES), LATENT_FRAMES, heads)
    )
    time = np.arange(LATENT_FRAMES)
    curves = [np.cos(np.subtract.outer(time, float(f))[:, None] * rates).mean(1) for f in frames]
    for curve in curves:
        ax.plot(curve, lw=1)
    ax.plot(np.mean(curves, 0), color="k", lw=2)
    ax.set_title(f"{_about(variant)}: rotation", fontsize=9)
    ax.set_ylim(0, 1.05)


def _seeds(measured: Iterable[Measured]) -> str:
    seeds = sorted({m.seed for m in measured})
    return f"seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"seed {seeds[0]}"


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, facecolor="white", layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _save(path: Path, figure: Any) -> Path:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    with whole_file(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
    return path
