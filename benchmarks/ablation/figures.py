"""Plots of the study."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ablation.plan import VARIANTS
from benchmarks.ablation.results import Measured, thirds
from genhoi.media import atomic_path

__all__ = ["draw_figures"]

_MAIN = ("alone", "fixed", "middle", "paper", "mask", "mask+flow", "vace")
_COLORS = {
    "alone": "0.55", "fixed": "tab:red", "middle": "tab:orange", "paper": "tab:blue",
    "release": "tab:cyan", "mask": "tab:green", "mask+flow": "tab:olive", "vace": "tab:purple",
}  # fmt: skip
_GIVEN = {"first": "first frame given", "none": "no frame given"}


def draw_figures(folder: Path, measured: Sequence[Measured]) -> list[Path]:
    """Draw what the measurements allow."""
    out = []
    for regime in sorted({m.regime for m in measured}):
        own = [m for m in measured if m.regime == regime]
        out += [
            _over_frames(folder / f"frames-{regime}.png", own, regime),
            _over_steps(folder / f"steps-{regime}.png", own, regime),
            _leakage(folder / f"leakage-{regime}.png", own, regime),
            _attention(folder / f"attention-{regime}.png", own, regime),
        ]
    return [path for path in out if path is not None]


def _about(variant: str) -> str:
    return "no reference" if variant == "alone" else VARIANTS[variant].about


def _label(variant: str, runs: Sequence[Measured], measured: Sequence[Measured]) -> str:
    """Its name, and which seeds it has if it lacks some: levels differ from base to base."""
    seeds = sorted({m.seed for m in runs})
    if seeds == sorted({m.seed for m in measured}):
        return _about(variant)
    return f"{_about(variant)} ({_seeds(runs)} only)"


def _last_step(measured: Iterable[Measured]) -> int:
    return max((m.step for m in measured), default=0)


def _pick(
    measured: Iterable[Measured], variant: str, step: int | None, long: bool
) -> list[Measured]:
    """A variant's evaluations over all seeds; the base alone has only one, at step 0."""
    wanted = 0 if variant == "alone" else step
    return [
        m for m in measured
        if m.variant == variant and m.long == long and (wanted is None or m.step == wanted)
    ]  # fmt: skip


def _over_frames(path: Path, measured: Sequence[Measured], regime: str) -> Path | None:
    """Object PSNR in every frame, at the last step."""
    step = _last_step(measured)
    if not step:
        return None
    figure, axes = _figure(2, 2, (13, 8))
    for row, long in enumerate((False, True)):
        for column, given in enumerate(_GIVEN):
            ax = axes[row][column]
            for variant in _MAIN:
                runs = _pick(measured, variant, step, long)
                if not runs:
                    continue
                curves = [np.nanmean(m.arrays[f"{given}/object_psnr"], 0) for m in runs]
                label = _label(variant, runs, measured)
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
    """Object PSNR of each third over the steps."""
    if not _last_step(measured):
        return None
    figure, axes = _figure(2, 3, (14, 7.5))
    for row, given in enumerate(_GIVEN):
        for column, part in enumerate(("first", "middle", "last")):
            ax = axes[row][column]
            for variant in _MAIN[1:]:
                runs = _pick(measured, variant, None, False)
                steps = sorted({m.step for m in runs})
                values = [
                    np.mean([_third(m, given, part) for m in runs if m.step == s]) for s in steps
                ]
                if not runs:
                    continue
                label = _label(variant, runs, measured)
                ax.plot(steps, values, "o-", ms=3, color=_COLORS[variant], label=label)
            ax.set_title(f"{_GIVEN[given]}: {part} third", fontsize=10)
            ax.set_xscale("symlog", linthresh=25)
            ax.set_xlabel("steps of adaptation")
            ax.set_ylabel("object PSNR, dB")
            ax.grid(alpha=0.3)
    axes[0][0].legend(fontsize=7)
    figure.suptitle(f"{regime} base, {_seeds(measured)}")
    return _save(path, figure)


def _third(m: Measured, given: str, part: str) -> float:
    return float(np.nanmean(thirds(m.arrays[f"{given}/object_psnr"])[part]))


def _leakage(path: Path, measured: Sequence[Measured], regime: str) -> Path | None:
    """What changes, and where, when the reference is another object's."""
    step = _last_step(measured)
    names = [v for v in VARIANTS if _pick(measured, v, step, False)]
    if not step or not names:
        return None
    figure, axes = _figure(1, 3, (13, 0.35 * len(names) + 2.2))
    panels = {
        "swap_object": "object's region, another reference",
        "swap_far": "background in untouched tokens, another reference",
        "far_change": "the same, against the base alone",
    }
    for ax, (name, title) in zip(axes[0], panels.items(), strict=True):
        values = [
            np.mean(
                [np.nanmean(m.arrays[f"first/{name}"]) for m in _pick(measured, v, step, False)]
            )
            for v in names
        ]
        labels = [_label(v, _pick(measured, v, step, False), measured) for v in names]
        ax.barh(labels, values, color=[_COLORS.get(v, "0.7") for v in names])
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
    """Share of the attention on the reference by head and frame, before and after adaptation."""
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
    """Mean cosine over the temporal frequencies between a frame's query and the reference's key."""
    from benchmarks.ablation.plan import LATENT_FRAMES, schedule_for
    from genhoi.tiny import TINY_CONFIG
    from genhoi_kernels import head_frames

    head_dim, heads = TINY_CONFIG["attention_head_dim"], TINY_CONFIG["num_attention_heads"]
    assert isinstance(head_dim, int) and isinstance(heads, int)
    part = head_dim - 2 * (head_dim // 3 // 2 * 2)
    rates = np.array([10000 ** (-2 * i / part) for i in range(part // 2)])
    own = VARIANTS[variant]
    frames = [-1.0] * heads if own.first_frame else head_frames(
        schedule_for(own, LATENT_FRAMES), LATENT_FRAMES, heads
    )  # fmt: skip
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
    with atomic_path(path, overwrite=True) as temporary:
        temporary.write_bytes(buffer.getvalue())
    return path
