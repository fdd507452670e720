"""What an inspection says in numbers: as JSON, and as a table for the terminal."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from genhoi.inspection.inspect import Inspection, ScheduleResult, schedule_name
from genhoi.inspection.timing import Timing
from genhoi.media import atomic_path

__all__ = ["dtype_name", "summary", "summary_table", "write_summary"]


def summary(inspection: Inspection) -> dict[str, Any]:
    """Return the numbers of an inspection as plain JSON values.

    Example:
        >>> import genhoi, torch
        >>> clip = genhoi.Clip(torch.randint(0, 255, (5, 32, 48, 3), dtype=torch.uint8))
        >>> mask = torch.zeros(5, 32, 48, dtype=torch.bool)
        >>> mask[:, :16, :16] = True
        >>> mug = torch.full((16, 16, 3), 200, dtype=torch.uint8)
        >>> inspection = genhoi.inspect_clip(clip, mask, mug, heads=2, head_dim=16)
        >>> genhoi.summary(inspection)["tokens_that_see_the_reference"]
        1
    """
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
        "dtype": dtype_name(inspection.dtype),
        "mask_rule": inspection.mask_rule,
        "schedules": [_schedule_summary(result) for result in inspection.schedules],
        "background_exactly_zero": all(r.background_max == 0 for r in inspection.schedules),
        "seconds": _timing_summary(inspection.timing),
        "environment": inspection.environment,
    }


def write_summary(path: str | Path, inspection: Inspection, *, overwrite: bool = False) -> Path:
    """Write `summary` as a JSON file, atomically.

    Raises:
        FileExistsError: the file exists and `overwrite` is False.

    Example:
        >>> import genhoi, torch
        >>> clip = genhoi.Clip(torch.randint(0, 255, (5, 32, 48, 3), dtype=torch.uint8))
        >>> mask = torch.zeros(5, 32, 48, dtype=torch.bool)
        >>> mask[:, :16, :16] = True
        >>> mug = torch.full((16, 16, 3), 200, dtype=torch.uint8)
        >>> inspection = genhoi.inspect_clip(clip, mask, mug, heads=2, head_dim=16)
        >>> genhoi.write_summary("inspect.json", inspection)
        PosixPath('inspect.json')
    """
    path = Path(path)
    text = json.dumps(summary(inspection), indent=2) + "\n"
    with atomic_path(path, overwrite=overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def summary_table(inspection: Inspection) -> Table:
    """Return the main numbers as a table for the terminal.

    Example:
        >>> import genhoi, torch
        >>> clip = genhoi.Clip(torch.randint(0, 255, (5, 32, 48, 3), dtype=torch.uint8))
        >>> mask = torch.zeros(5, 32, 48, dtype=torch.bool)
        >>> mask[:, :16, :16] = True
        >>> mug = torch.full((16, 16, 3), 200, dtype=torch.uint8)
        >>> inspection = genhoi.inspect_clip(clip, mask, mug, heads=2, head_dim=16)
        >>> table = genhoi.summary_table(inspection)  # for rich.print
        >>> table.row_count  # of the schedules that were compared
        3
    """
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


def _timing_summary(timing: Timing | None) -> dict[str, Any] | None:
    if timing is None:
        return None
    return {
        "heads": timing.heads,
        "repeats": timing.repeats,
        "op_rotated_inputs": timing.op,
        "op_with_rotation": timing.op_with_rotation,
        "sdpa_dense_mask_rotated_inputs": timing.sdpa,
        "sdpa_dense_mask_bytes": timing.mask_bytes,
    }


def _schedule_summary(result: ScheduleResult) -> dict[str, Any]:
    return {
        "schedule": result.schedule,
        "head_frames": list(result.head_frames),
        "share_by_latent_frame": list(result.curve),
        "spread": result.spread if math.isfinite(result.spread) else None,
        "background_max": result.background_max,
    }


def dtype_name(dtype: torch.dtype) -> str:
    """Name a type as the command line does."""
    return str(dtype).removeprefix("torch.")
