"""Where does a clip look at the object's picture? The op's own answer, on the clip's own pixels.

Queries, keys and values are made from pixels, not by a trained model: a token is a block of 16 x 16
pixels of one latent frame (4 video frames), described by its mean colours on a 2 x 2 raster. Every
head turns them by its own random orthonormal projection and normalises them by RMS, as the model
does with its queries and keys. So tokens attend to what looks alike, rotation and mask gate act as
in the model, and no weights are needed. What a trained model would attend to is another question.

The share of attention that a token spends on the reference comes from two calls of the op, with
and without the reference: 1 - exp(lse_without - lse_with). No attention matrix is ever built, and a
token that the mask gate keeps out gets exactly 0.

`inspect_clip` computes; `genhoi.inspection.figure` draws.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

import genhoi_kernels
from genhoi.conditioning.masks import MaskRule, token_mask
from genhoi.inspection.timing import Timing, time_attention
from genhoi.media.media import Clip, atomic_path, fit_image
from genhoi_kernels import HeadSlidingRope, MaskGate, VideoRope, reference_attention

__all__ = [
    "FrameSchedule",
    "Inspection",
    "ScheduleResult",
    "inspect_clip",
    "schedule_name",
    "summary",
    "summary_table",
    "write_summary",
]

FrameSchedule = str | float
Progress = Callable[[int, int, str], None]

SCHEDULES: tuple[FrameSchedule, ...] = (-1.0, "paper", "release")
PATCH = 16
_CELLS = 2
_LATENT_FRAMES = 4
# Below this, a block differs so little from grey that its colour says nothing; padding around the
# object is such.
_FAINT = 0.05


@dataclass(frozen=True)
class ScheduleResult:
    """What one schedule of reference frames does to attention.

    Args:
        schedule: as `HeadSlidingRope` takes it.
        head_frames: frame at which each head sees the reference.
        mass: float32 [f, h, w], share of attention on the reference, mean over heads.
        curve: mean of `mass` over the hand-and-object tokens of each latent frame; None where there
            is none.
        spread: largest over smallest value of `curve`; 1 is perfect balance.
        background_max: largest share of any token outside the mask in any head, meant to be 0.
    """

    schedule: FrameSchedule
    head_frames: tuple[float, ...]
    mass: Tensor
    curve: tuple[float | None, ...]
    spread: float
    background_max: float


@dataclass(frozen=True)
class Inspection:
    """Everything that `inspect_clip` found out, and what it was given.

    Args:
        clip: the clip.
        mask: bool [F, H, W].
        reference: uint8 [H, W, 3], the object's picture as the model takes it.
        grid: the token grid (f, h, w).
        ref_grid: rows and columns of reference tokens.
        tokens: bool [f, h, w], tokens that see the reference; none in frame 0.
        heads: number of heads.
        head_dim: values a head.
        dtype: what the op computed in.
        mask_rule: see `token_mask`.
        schedules: one result a schedule.
        timing: times, or None if they were not asked for.
        environment: backend, versions, machine.
    """

    clip: Clip
    mask: Tensor
    reference: Tensor
    grid: tuple[int, int, int]
    ref_grid: tuple[int, int]
    tokens: Tensor
    heads: int
    head_dim: int
    dtype: torch.dtype
    mask_rule: str
    schedules: tuple[ScheduleResult, ...]
    timing: Timing | None
    environment: dict[str, str]


def inspect_clip(
    clip: Clip,
    mask: Tensor,
    object_image: Tensor,
    *,
    heads: int = 12,
    head_dim: int = 64,
    schedules: Sequence[FrameSchedule] = SCHEDULES,
    mask_rule: MaskRule = "release",
    dtype: torch.dtype = torch.float32,
    backend: str | None = None,
    device: str = "cpu",
    timing_repeats: int = 3,
    timing_heads: int = 2,
    seed: int = 0,
    progress: Progress | None = None,
) -> Inspection:
    """Measure where a clip's tokens see the object, for each schedule of reference frames.

    Args:
        clip: 1 + 4 n frames, n at least 1; height and width multiples of 16.
        mask: bool [F, H, W], the hand and the object.
        object_image: uint8 [h, w, 3]; it is fitted into the clip's frame on grey 128.
        heads: number of heads.
        head_dim: values a head, even.
        schedules: what to compare; see `HeadSlidingRope`.
        mask_rule: see `token_mask`.
        dtype: float32, bfloat16 or float16.
        backend: one of `genhoi_kernels.backends()`; default: the first that takes the call.
        device: where to compute.
        timing_repeats: repeats behind each time; 0 leaves timing out.
        timing_heads: heads of the timed calls, no more than `heads`.
        seed: of the heads' projections.
        progress: called with (calls done, calls in all, what comes next).

    Raises:
        TypeError: `mask` is not bool.
        ValueError: sizes do not fit, no token lies inside the mask, or the backend refuses the
            call.
    """
    _check_inputs(clip, mask, heads)
    grid = (1 + (clip.num_frames - 1) // _LATENT_FRAMES, clip.height // PATCH, clip.width // PATCH)
    tokens = token_mask(mask, grid, rule=mask_rule, kind="pixel", clear_first=True)
    if not tokens.any():
        raise ValueError(
            "mask: no token after frame 0 lies inside it; "
            "want white (above 127) where hand and object are"
            + ("" if mask_rule == "any" else ', or the rule "any" for something thin')
        )
    reference = fit_image(object_image, (clip.height, clip.width))
    features, ref_features = _features(clip.frames), _features(reference[None])
    ref_grid = (grid[1], grid[2])
    backend = _choose_backend(backend, head_dim, dtype, device)
    run = _Run(
        features=features.to(device),
        ref_features=ref_features.to(device),
        grid=grid,
        heads=heads,
        head_dim=head_dim,
        dtype=dtype,
        backend=backend,
        gate=MaskGate.build(tokens.to(device)),
        seed=seed,
    )
    timed_calls = 3 * (timing_repeats + 1) if timing_repeats > 0 else 0
    report = _counter(progress, heads * (1 + len(schedules)) + timed_calls)
    without = run.lse_by_head(None, partial(report, "attention without the reference"))
    results = []
    for schedule in schedules:
        label = f"attention with the reference, {schedule_name(schedule)}"
        with_ref = run.lse_by_head(schedule, partial(report, label))
        results.append(_schedule_result(schedule, without, with_ref, tokens, run))
    timing = None
    if timing_repeats > 0:
        timing = run.time(min(timing_heads, heads), timing_repeats, report)
    return Inspection(
        clip=clip,
        mask=mask,
        reference=reference,
        grid=grid,
        ref_grid=ref_grid,
        tokens=tokens.view(grid),
        heads=heads,
        head_dim=head_dim,
        dtype=dtype,
        mask_rule=mask_rule,
        schedules=tuple(results),
        timing=timing,
        environment=_environment(backend, device),
    )


def schedule_name(schedule: FrameSchedule) -> str:
    """Name a schedule in words for people."""
    if isinstance(schedule, str):
        return f"head-sliding ({schedule})"
    return f"one fixed frame ({schedule:g})"


def summary(inspection: Inspection) -> dict[str, Any]:
    """Return the numbers of an inspection as plain JSON values."""
    timing = inspection.timing
    return {
        "clip": {
            "frames": inspection.clip.num_frames,
            "height": inspection.clip.height,
            "width": inspection.clip.width,
            "fps": float(inspection.clip.fps),
        },
        "grid": list(inspection.grid),
        "video_tokens": math.prod(inspection.grid),
        "reference_tokens": math.prod(inspection.ref_grid),
        "tokens_that_see_the_reference": int(inspection.tokens.sum()),
        "heads": inspection.heads,
        "head_dim": inspection.head_dim,
        "dtype": _dtype_name(inspection.dtype),
        "mask_rule": inspection.mask_rule,
        "schedules": [_schedule_summary(result) for result in inspection.schedules],
        "background_exactly_zero": all(r.background_max == 0 for r in inspection.schedules),
        "seconds": None
        if timing is None
        else {
            "heads": timing.heads,
            "repeats": timing.repeats,
            "op_rotated_inputs": timing.op,
            "op_with_rotation": timing.op_with_rotation,
            "sdpa_dense_mask_rotated_inputs": timing.sdpa,
            "sdpa_dense_mask_bytes": timing.mask_bytes,
        },
        "environment": inspection.environment,
    }


def write_summary(path: str | Path, inspection: Inspection, *, overwrite: bool = False) -> Path:
    """Write `summary` as a JSON file, atomically.

    Raises:
        FileExistsError: the file exists and `overwrite` is False.
    """
    path = Path(path)
    text = json.dumps(summary(inspection), indent=2) + "\n"
    with atomic_path(path, overwrite=overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def summary_table(inspection: Inspection) -> Table:
    """Return the main numbers as a table for the terminal."""
    f, h, w = inspection.grid
    table = Table(
        title=f"Attention on the object: {f} x {h} x {w} = {f * h * w:,} video tokens, "
        f"{math.prod(inspection.ref_grid):,} reference tokens, {inspection.heads} heads"
    )
    table.add_column("place of the reference", no_wrap=True)
    table.add_column("spread over\nframes", justify="right")
    table.add_column("mean share,\nhand and object", justify="right")
    table.add_column("largest share,\nbackground", justify="right")
    for result in inspection.schedules:
        shares = [value for value in result.curve if value is not None]
        table.add_row(
            schedule_name(result.schedule),
            f"{result.spread:.2f}",
            f"{100 * statistics.fmean(shares):.2f} %",
            "exactly 0" if result.background_max == 0 else f"{result.background_max:.1e}",
        )
    return table


@dataclass(frozen=True)
class _Run:
    """One clip's features and how to attend over them, head by head to bound memory."""

    features: Tensor
    ref_features: Tensor
    grid: tuple[int, int, int]
    heads: int
    head_dim: int
    dtype: torch.dtype
    backend: str
    gate: MaskGate
    seed: int

    @property
    def rope(self) -> VideoRope:
        return VideoRope(self.grid, head_dim=self.head_dim)

    def ref_rope(self, schedule: FrameSchedule, first_head: int) -> HeadSlidingRope:
        return HeadSlidingRope(
            self.grid,
            ((self.grid[1], self.grid[2]),),
            head_dim=self.head_dim,
            num_heads=self.heads,
            schedule=schedule,
            first_head=first_head,
        )

    def projected(self, first_head: int, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(queries = keys, values, reference keys, reference values), [1, N or M, count, D]."""
        qk, v, k_ref, v_ref = [], [], [], []
        for head in range(first_head, first_head + count):
            random = torch.Generator().manual_seed(self.seed * 1_000_003 + head)
            width = self.features.shape[1]
            projection = torch.empty(self.head_dim, width)
            torch.nn.init.orthogonal_(projection, generator=random)
            projection = projection.to(self.features)
            video, ref = self.features @ projection.T, self.ref_features @ projection.T
            qk.append(_rms_norm(video))
            k_ref.append(_rms_norm(ref))
            v.append(video)
            v_ref.append(ref)
        stacked = (torch.stack(x, dim=1)[None].to(self.dtype) for x in (qk, v, k_ref, v_ref))
        return tuple(stacked)  # type: ignore[return-value]

    def lse_by_head(
        self, schedule: FrameSchedule | None, before_each: Callable[[], None]
    ) -> Tensor:
        """Log-sum-exp of every row, float32 [heads, N]; without the reference if `schedule` is
        None."""
        rows = []
        for head in range(self.heads):
            before_each()
            qk, v, k_ref, v_ref = self.projected(head, 1)
            reference: dict[str, Any] = {}
            if schedule is not None:
                reference = {
                    "k_ref": k_ref,
                    "v_ref": v_ref,
                    "mask": self.gate,
                    "ref_rope": self.ref_rope(schedule, head),
                }
            _, lse = reference_attention(
                qk, qk, v, **reference, rope=self.rope, return_lse=True, backend=self.backend
            )
            rows.append(lse[0, 0].float().cpu())
        return torch.stack(rows)

    def time(self, heads: int, repeats: int, report: Callable[[str], None]) -> Timing:
        """Times of one call over the first `heads` heads."""
        qk, v, k_ref, v_ref = self.projected(0, heads)
        return time_attention(
            qk,
            qk,
            v,
            k_ref,
            v_ref,
            gate=self.gate,
            rope=self.rope,
            ref_rope=self.ref_rope("paper", 0),
            backend=self.backend,
            repeats=repeats,
            report=report,
        )


def _schedule_result(
    schedule: FrameSchedule, without: Tensor, with_ref: Tensor, tokens: Tensor, run: _Run
) -> ScheduleResult:
    share = -torch.expm1(without.double() - with_ref.double())
    inside = tokens[0].cpu()
    outside = share[:, ~inside]
    mass = share.mean(0)
    per_frame = mass.view(run.grid[0], -1)
    inside_frame = inside.view(run.grid[0], -1)
    curve = tuple(
        float(values[seen].mean()) if seen.any() else None
        for values, seen in zip(per_frame, inside_frame, strict=True)
    )
    known = [value for value in curve if value is not None]
    return ScheduleResult(
        schedule=schedule,
        head_frames=run.ref_rope(schedule, 0).frames,
        mass=mass.float().view(run.grid),
        curve=curve,
        spread=max(known) / min(known) if min(known) > 0 else math.inf,
        background_max=float(outside.abs().max()) if outside.numel() else 0.0,
    )


def _features(frames: Tensor) -> Tensor:
    """uint8 [F, H, W, 3] -> float32 [f * h * w, 12]: mean colours of a token's pixels on a 2 x 2
    raster, -1 to 1.

    Grey 128, the colour of padding, is 0.
    """
    cell = PATCH // _CELLS
    frame_count, height, width, _ = frames.shape
    rasters = (frame_count, height // cell, cell, width // cell, cell, 3)
    # Summed over columns first: the faster order, as colours lie side by side in memory.
    total = frames.view(rasters).sum(4, dtype=torch.int32).sum(2)
    pooled = ((total.float() / cell**2 - 128) / 128).permute(0, 3, 1, 2)
    if len(pooled) > 1:
        later = pooled[1:].unflatten(0, (-1, _LATENT_FRAMES)).mean(1)
        pooled = torch.cat([pooled[:1], later])
    blocks = pooled.unflatten(3, (-1, _CELLS)).unflatten(2, (-1, _CELLS))
    return blocks.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(0, 2)


def _rms_norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + _FAINT**2 / x.shape[-1])


def _check_inputs(clip: Clip, mask: Tensor, heads: int) -> None:
    if clip.num_frames < 5 or (clip.num_frames - 1) % _LATENT_FRAMES:
        raise ValueError(f"clip: got {clip.num_frames} frames, want 1 + 4 n: 5, 9, ..., 81, ...")
    if clip.height % PATCH or clip.width % PATCH:
        raise ValueError(
            f"clip: got {clip.width}x{clip.height} pixels, want multiples of {PATCH}: resize_clip"
        )
    if mask.dtype != torch.bool:
        raise TypeError(f"mask: got {mask.dtype}, want torch.bool")
    want = (clip.num_frames, clip.height, clip.width)
    if tuple(mask.shape) != want:
        raise ValueError(f"mask: got shape {tuple(mask.shape)}, want {want} like the clip")
    if heads < 1:
        raise ValueError(f"heads: got {heads}, want at least 1")


def _choose_backend(name: str | None, head_dim: int, dtype: torch.dtype, device: str) -> str:
    """Name the backend that will compute."""
    q = torch.zeros(1, 4, 1, head_dim, dtype=dtype, device=device)
    answers = genhoi_kernels.explain(q, q, q, rope=VideoRope((1, 2, 2), head_dim=head_dim))
    if name is None:
        return next(candidate for candidate, reason in answers.items() if reason is None)
    if name not in answers:
        raise ValueError(f"backend: got {name!r}, want one of {', '.join(answers)}")
    if answers[name] is not None:
        raise ValueError(f"backend: {name!r} cannot take this call: {answers[name]}")
    return name


def _counter(progress: Progress | None, total: int) -> Callable[[str], None]:
    done = 0

    def report(what: str) -> None:
        nonlocal done
        if progress is not None:
            progress(done, total, what)
        done += 1

    return report


def _schedule_summary(result: ScheduleResult) -> dict[str, Any]:
    return {
        "schedule": result.schedule,
        "head_frames": list(result.head_frames),
        "share_by_latent_frame": list(result.curve),
        "spread": result.spread if math.isfinite(result.spread) else None,
        "background_max": result.background_max,
    }


def _environment(backend: str, device: str) -> dict[str, str]:
    return {
        "backend": backend,
        "device": torch.cuda.get_device_name()
        if device.startswith("cuda")
        else genhoi_kernels.build_info()["cpu"],
        "threads": str(torch.get_num_threads()),
        "cpus": str(os.cpu_count()),
        "torch": torch.__version__,
        "genhoi_kernels": genhoi_kernels.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
