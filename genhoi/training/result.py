"""What a training leaves behind: files that `genhoi edit` and diffusers take.

- adapter/: GenHOI's own weights, for `--adapter`.
- base/: after stage "base", and where low-rank weights of the video's own attention were trained
  too on a base that merges them: a mosaic base for `--base`, these merged in; of other bases the
  transformer alone, in diffusers' format.
- video_lora/: such low-rank weights of other bases, which are too large to be merged and written
  out: for `--video-lora`, or `pipe.load_lora_weights(folder)` of diffusers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from genhoi.bases.base import Base
from genhoi.media import atomic_path
from genhoi.models.adapter import GenHOIAdapter
from genhoi.models.registry import empty_model
from genhoi.training.config import TrainConfig

__all__ = ["finished_steps", "result_folders", "write_result"]

_FINISHED = "finished.json"  # written last: the steps that the results beside it have behind them
_LORA_FILE = "pytorch_lora_weights.safetensors"  # the name that diffusers looks for
_BASE, _A, _B = ".base_layer.", ".lora_A.default.", ".lora_B.default."  # peft's names


def result_folders(out: Path, config: TrainConfig, kind: type[Base]) -> dict[str, Path]:
    """Say where `write_result` writes what: "adapter", "base", "video_lora".

    Args:
        out: the run's folder.
        config: of the run.
        kind: of its base.
    """
    if config.stage == "base":
        return {"base": out / "base"}
    folders = {"adapter": out / "adapter"}
    if config.video_rank:
        name = "base" if kind.merges_video_lora else "video_lora"
        folders[name] = out / name
    if config.train_base:
        folders["base"] = out / "base"
    return folders


def finished_steps(out: Path) -> int | None:
    """Say after how many steps a run's results were written; None where they are not complete.

    A run that was made longer has results of its shorter self until it ends.
    """
    path = out / _FINISHED
    if not path.is_file():
        return None
    return int(json.loads(path.read_text(encoding="utf-8"))["steps"])


def write_result(
    out: Path,
    base: Base,
    config: TrainConfig,
    *,
    adapter: GenHOIAdapter | None,
    transformer: Mapping[str, Tensor],
) -> None:
    """Write what was learned, each file whole or not at all.

    Args:
        out: the run's folder.
        base: that was trained on, or itself.
        config: of the run.
        adapter: None where the base was trained.
        transformer: weights of the base by their names, whole, on the CPU: all of them for base/,
            the low-rank ones for video_lora/, and else none.
    """
    folders = result_folders(out, config, type(base))
    if adapter is not None:
        adapter.save_pretrained(folders["adapter"])
    if "video_lora" in folders:
        _write_lora(folders["video_lora"], transformer)
    elif "base" in folders:
        base.save_trained(
            folders["base"],
            _transformer(base, _merged(transformer)),
            about=_about(config),
            full_precision=bool(config.video_rank),
        )
    with atomic_path(out / _FINISHED, overwrite=True) as temporary:
        temporary.write_text(json.dumps({"steps": config.steps}) + "\n", encoding="utf-8")


def _transformer(base: Base, weights: Mapping[str, Tensor]) -> Any:
    """Make the base's transformer, whole and with these weights."""
    with torch.device("meta"):
        transformer = empty_model(base.transformer.config).transformer
    transformer.load_state_dict(dict(weights), strict=True, assign=True)
    return transformer


def _merged(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name weights as the model does, and add peft's low-rank ones.

    Alpha is the rank, so there is no factor.
    """
    merged = {}
    for name, weight in weights.items():
        if _A in name or _B in name:
            continue
        if name.replace(_BASE, _A) in weights and _BASE in name:
            product = weights[name.replace(_BASE, _B)] @ weights[name.replace(_BASE, _A)]
            weight = (weight.float() + product).to(weight.dtype)
        merged[name.replace(_BASE, ".")] = weight
    return merged


def _write_lora(folder: Path, low_rank: Mapping[str, Tensor]) -> None:
    weights = {
        f"transformer.{name.replace('.default.', '.')}": weight.contiguous()
        for name, weight in low_rank.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / _LORA_FILE, overwrite=True) as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})


def _about(config: TrainConfig) -> str:
    size = f"{config.width}x{config.height}, {config.frames} frames"
    return f"trained on {config.data} clips ({size}), {config.steps} steps of {config.batch}"
