"""The record of an edit: everything needed to repeat it."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

import genhoi_kernels
from genhoi.editing.figure import frame_means
from genhoi.editing.inputs import EditInputs
from genhoi.editing.plan import EditPlan
from genhoi.editing.windows import windows
from genhoi.media import Clip, has_sound

__all__ = ["make_record", "result_record"]


def make_record(
    options: dict[str, Any],
    inputs: EditInputs,
    pipeline: Any,
    plan: EditPlan,
    settings: dict[str, Any],
    *,
    notes: list[str],
    repeat: str,
) -> dict[str, Any]:
    """Collect what edit.json says of how the clip was made; plain JSON values.

    Args:
        options: of the command line.
        inputs: as read.
        pipeline: as used.
        plan: of the edit.
        settings: what the pipeline was called with.
        notes: what the user was told.
        repeat: the command line that does it again.
    """
    clip = inputs.clip
    return {
        "genhoi": genhoi_kernels.__version__,
        "repeat": repeat,
        "inputs": inputs.files,
        "clip": {
            "frames": clip.num_frames,
            "height": clip.height,
            "width": clip.width,
            "fps": str(clip.fps),
        },
        "settings": settings,
        "first_frame_given": inputs.first_frame is not None,
        "last_frame_given": inputs.last_frame is not None,
        "sound": has_sound(inputs.video),
        "size": {"width": plan.crop.size[1], "height": plan.crop.size[0]},
        "crop": plan.crop.as_record(),
        "base": {
            "name": options["base"],
            "about": pipeline.base.about,
            "trained": pipeline.base.trained,
            "transformer": None if options["transformer"] is None else str(options["transformer"]),
            "video_lora": None if options["video_lora"] is None else str(options["video_lora"]),
            "loras": list(options["loras"]),
        },
        "adapter": {"names": list(options["adapters"]), "trained": pipeline.adapter_trained},
        "attachment": asdict(pipeline.attachment.options),
        "dtype": options["dtype"],
        "device": options["device"],
        "windows": windows(plan.frames, options["window"], options["overlap"]),
        "reference_passes": pipeline.attachment.reference_passes,
        "notes": notes,
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "diffusers": metadata.version("diffusers"),
            "machine": f"{platform.system()} {platform.machine()}",
            "threads": torch.get_num_threads(),
        },
    }


def result_record(
    edited: Clip,
    *,
    seconds: float,
    earlier_windows: int,
    drift: Mapping[str, Any],
    attention_layer: int,
    attention: Mapping[int, Tensor],
) -> dict[str, Any]:
    """Collect what edit.json says of the result; plain JSON values.

    Args:
        edited: the result.
        seconds: that it took.
        earlier_windows: windows that an earlier, interrupted run had finished.
        drift: of the result and of the source, by name.
        attention_layer: block whose attention to the objects was measured.
        attention: window -> float32 [f, h, w] of its last step, see `frame_means`.
    """
    return {
        # Of the frames, not of the file: x264 does not always write the same bytes for the same
        # frames.
        "edited_frames_sha256": hashlib.sha256(edited.frames.contiguous().numpy().data).hexdigest(),
        "seconds": round(seconds, 3),
        "windows_of_an_earlier_run": earlier_windows,
        "drift": dict(drift),
        "attention": {
            "layer": attention_layer,
            "share_by_window_and_latent_frame": {
                str(window): frame_means(share) for window, share in attention.items()
            },
        },
    }
