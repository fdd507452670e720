"""Where does a clip look at the object's picture? The op's own answer, on the clip's own pixels.

Queries, keys and values are made from pixels, not by a trained model: a token is a block of 16 x 16
pixels of one latent frame (4 video frames), described by its mean colours on a 2 x 2 raster. Every
head turns them by its own random orthonormal projection and normalises them by RMS, as the model
does with its queries and keys. So tokens attend to what looks alike, rotation and mask gate act as
in the model, and no weights are needed. What a trained model would attend to is another question.

The share of attention that a token spends on the reference comes from two calls of the op, with
and without the reference: 1 - exp(lse_without - lse_with). No attention matrix is ever built, and a
token that the mask gate keeps out gets exactly 0.

`inspect_clip` computes; `genhoi.inspection.figure` draws, `genhoi.inspection.summary` writes.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import genhoi_kernels
from genhoi.conditioning.grid import STRIDES
from genhoi.conditioning.masks import MaskRule, token_mask
from genhoi.inspection.pixel_attention import FrameSchedule, PixelAttention, pixel_features
from genhoi.inspection.timing import Timing
from genhoi.media import Clip, fit_image
from genhoi_kernels import MaskGate, VideoRope

__all__ = ["Inspection", "ScheduleResult", "inspect_clip", "schedule_name"]

Progress = Callable[[int, int, str], None]

SCHEDULES: tuple[FrameSchedule, ...] = (-1.0, "paper", "release")


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

    Example:
        >>> import genhoi, torch
        >>> clip = genhoi.Clip(torch.randint(0, 255, (5, 32, 48, 3), dtype=torch.uint8))
        >>> mask = torch.zeros(5, 32, 48, dtype=torch.bool)
        >>> mask[:, :16, :16] = True
        >>> mug = torch.full((16, 16, 3), 200, dtype=torch.uint8)
        >>> inspection = genhoi.inspect_clip(clip, mask, mug, heads=2, head_dim=16)
        >>> inspection.clip, inspection.ref_grid
        (Clip(5 frames, 48x32, 24 fps), (2, 3))
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

    Example:
        >>> import genhoi, torch
        >>> clip = genhoi.Clip(torch.randint(0, 255, (5, 32, 48, 3), dtype=torch.uint8))
        >>> mask = torch.zeros(5, 32, 48, dtype=torch.bool)
        >>> mask[:, :16, :16] = True
        >>> mug = torch.full((16, 16, 3), 200, dtype=torch.uint8)
        >>> inspection = genhoi.inspect_clip(clip, mask, mug, heads=2, head_dim=16)
        >>> inspection.grid, int(inspection.tokens.sum())
        ((2, 2, 3), 1)
    """
    _check_inputs(clip, mask, heads)
    grid = STRIDES.grid(clip.num_frames, clip.height, clip.width)
    tokens = _seeing_tokens(mask, grid, mask_rule)
    reference = fit_image(object_image, (clip.height, clip.width))
    backend = _choose_backend(backend, head_dim, dtype, device)
    run = PixelAttention(
        features=pixel_features(clip.frames).to(device),
        ref_features=pixel_features(reference[None]).to(device),
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
        ref_grid=(grid[1], grid[2]),
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


def _seeing_tokens(mask: Tensor, grid: tuple[int, int, int], rule: MaskRule) -> Tensor:
    """Tell which tokens see the reference, bool [1, f * h * w]; ValueError if none does."""
    tokens = token_mask(mask, grid, rule=rule, kind="pixel", clear_first=True)
    if not tokens.any():
        raise ValueError(
            "mask: no token after frame 0 lies inside it; "
            "want white (above 127) where hand and object are"
            + ("" if rule == "any" else ', or the rule "any" for something thin')
        )
    return tokens


def _schedule_result(
    schedule: FrameSchedule, without: Tensor, with_ref: Tensor, tokens: Tensor, run: PixelAttention
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


def _check_inputs(clip: Clip, mask: Tensor, heads: int) -> None:
    if not STRIDES.is_clip(clip.num_frames):
        raise ValueError(f"clip: got {clip.num_frames} frames, want 1 + 4 n: 5, 9, ..., 81, ...")
    if not STRIDES.fits(clip.height, clip.width):
        raise ValueError(
            f"clip: got {clip.width}x{clip.height} pixels, want multiples of {STRIDES.token}: "
            "resize_clip"
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


def _environment(backend: str, device: str) -> dict[str, str]:
    on_gpu = device.startswith("cuda")
    name = torch.cuda.get_device_name() if on_gpu else genhoi_kernels.build_info()["cpu"]
    return {
        "backend": backend,
        "device": name,
        "threads": str(torch.get_num_threads()),
        "cpus": str(os.cpu_count()),
        "torch": torch.__version__,
        "genhoi_kernels": genhoi_kernels.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
