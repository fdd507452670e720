"""The mosaic base: a small real Wan transformer on means of pixels, without a VAE.

It is the fast base of tests, and the base of the study of the paper's parts (benchmarks/ablation).
Its codec has a VAE's shapes, 4 x in time, 8 x in space, 16 channels. Each block of 4 frames of
8 x 8 pixels becomes 12 mean colours, of its 2 x 2 quarters, and 4 changes of brightness, each
quarter's mean over the last two frames less that over the first two. Frame 0 counts four times.
Decoding inverts this as far as it goes: encode(decode(z)) is z up to rounding to 8 bits, and
decode(encode(frames)) is a mosaic of 4 x 4 pixels.
"""

from __future__ import annotations

import copy
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save
from torch import Tensor

from genhoi.bases.about import BaseSettings, EditDefaults, TrainedOn, read_settings
from genhoi.bases.base import Base
from genhoi.bases.wan_files import adapters_in, folder_named
from genhoi.media import atomic_path

__all__ = ["MARK_NAME", "MOSAIC_CONFIG", "UNTRAINED", "MosaicBase"]

UNTRAINED = "mosaic-untrained"

# Head dim 64: 12 temporal frequencies, so that a fixed frame's voice fades instead of returning.
MOSAIC_CONFIG = {
    "_class_name": "WanTransformer3DModel",
    "num_attention_heads": 4,
    "attention_head_dim": 64,
    "in_channels": 36,
    "out_channels": 16,
    "text_dim": 8,
    "freq_dim": 64,
    "ffn_dim": 448,
    "num_layers": 4,
    "image_dim": None,
    "added_kv_proj_dim": None,
    "rope_max_seq_len": 1024,
}

MARK_NAME = "mosaic_base.json"
_FORMAT, _VERSION = "genhoi-mosaic-base", 1
_CELL = 4
_SCALE = 2.0  # brings the latents near unit variance, which flow matching's noise has


class MosaicBase(Base):
    """The codec that this module describes, around a small transformer.

    Args:
        folder: of trained weights, as `save_pretrained` writes them. None for random ones, which
            paint noise.
        seed: of random weights.
        device: where to compute.
        dtype: of the weights.
        transformer: to be used instead of the folder's.

    Raises:
        FileNotFoundError, ValueError: no such weights in the folder.
    """

    frames_apart = True
    can_offload = False
    merges_video_lora = True
    # Masks: percentiles 1 and 99 of 60 clips of its training, 0.14 and 0.32, widened by a half.
    settings = BaseSettings(
        defaults=EditDefaults(
            steps=25,
            guidance=1.0,
            shift=3.0,
            window=49,
            mask_rule="any",
            size=(96, 96),
            crop_below=1.0,
        ),
        trained_on=TrainedOn(sizes=((96, 96),), frames=49, mask_shares=(0.09, 0.48), outlines=True),
        caution=(
            "A mosaic base shows how an edit works; it is no tool for real clips. It paints a "
            "square of 96 x 96 pixels in cells of 4 x 4, so an object keeps its colours and loses "
            "its shape and its letters. For more, name a Wan2.1 or VACE pipeline (--base) and an "
            "adapter that was trained on it (--adapter)."
        ),
        takes_text=False,
    )

    def __init__(
        self,
        folder: Path | None = None,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        transformer: Any = None,
    ) -> None:
        self.device = torch.device(device)
        self.settings = self.read_settings(UNTRAINED if folder is None else folder)
        self.trained = folder is not None or transformer is not None
        if transformer is not None:
            self.about = "mosaic"
        elif folder is not None:
            self.about = f"mosaic: {_read_mark(folder)['about']}"
            transformer = _cast(_read_transformer(folder), dtype)
        else:
            self.about = f"mosaic, UNTRAINED: random weights from seed {seed}; it paints noise"
            transformer = _cast(_random_transformer(seed), dtype)
        self.transformer = transformer.to(self.device).eval()

    @classmethod
    def takes(cls, name: str | os.PathLike[str]) -> bool:
        """Take the name of random weights, and folders that `save_pretrained` wrote."""
        return str(name) == UNTRAINED or (folder_named(name) / MARK_NAME).is_file()

    @classmethod
    def read_config(cls, name: str | os.PathLike[str]) -> dict[str, Any]:
        """Copy `MOSAIC_CONFIG`; all mosaic bases have that one."""
        return dict(MOSAIC_CONFIG)

    @classmethod
    def read_settings(cls, name: str | os.PathLike[str]) -> BaseSettings:
        """Read a folder's own; random weights are not trained."""
        if str(name) == UNTRAINED:
            return replace(cls.settings, trained=False)
        return read_settings(folder_named(name), cls.settings)

    @classmethod
    def check_complete(cls, name: str | os.PathLike[str], *, own_transformer: bool = True) -> None:
        """Check that a folder has weights."""
        path = folder_named(name) / SAFETENSORS_WEIGHTS_NAME
        if own_transformer and path.with_name(MARK_NAME).is_file() and not path.is_file():
            raise FileNotFoundError(f"base: there is no {path}; wanted the folder of a mosaic base")

    @classmethod
    def load(
        cls,
        name: str | os.PathLike[str],
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        seed: int,
        transformer: Any = None,
    ) -> MosaicBase:
        """Load trained weights, or make random ones for "mosaic-untrained"."""
        folder = None if str(name) == UNTRAINED else folder_named(name)
        return cls(folder, seed=seed, device=device, dtype=dtype, transformer=transformer)

    @classmethod
    def shipped_adapters(cls, name: str | os.PathLike[str]) -> tuple[Path, ...]:
        """Name adapter/ in the folder."""
        return adapters_in(folder_named(name), two_experts=False)

    def load_video_lora(self, folder: str | os.PathLike[str]) -> None:
        """Refuse them: training merges them into a mosaic base."""
        raise ValueError(
            f"video_lora: got {os.fspath(folder)}, wanted none for this base: a mosaic base has "
            f"such weights in it"
        )

    def save_trained(
        self, folder: Path, transformer: Any, *, about: str, full_precision: bool
    ) -> None:
        """Write a folder that is a mosaic base again."""
        trained = copy.copy(self)
        trained.transformer = transformer
        trained.save_pretrained(folder, about=about)
        if full_precision:
            transformer.save_pretrained(folder)

    def save_pretrained(self, folder: Path, *, about: str) -> None:
        """Write the transformer, weights in bfloat16, and what marks the folder as a mosaic base.

        Args:
            folder: made if it isn't there.
            about: one sentence for people on where the weights come from.
        """
        self.transformer.save_config(folder)
        weights = {
            name: x.detach().cpu().to(torch.bfloat16).contiguous()
            for name, x in self.transformer.state_dict().items()
        }
        with atomic_path(folder / SAFETENSORS_WEIGHTS_NAME, overwrite=True) as temporary:
            # Not `save_file`, whose files only their owner may read.
            temporary.write_bytes(save(weights, metadata={"format": "pt"}))
        mark = {"format": _FORMAT, "version": _VERSION, "about": about}
        with atomic_path(folder / MARK_NAME, overwrite=True) as temporary:
            temporary.write_text(json.dumps(mark, indent=2) + "\n", encoding="utf-8")

    def encode(self, frames: Tensor) -> Tensor:
        """Average the cells of every block into colours and changes of brightness."""
        count, height, width, _ = frames.shape
        cells = (count, height // _CELL, _CELL, width // _CELL, _CELL, 3)
        means = frames.to(self.device).view(cells).float().mean((2, 4)) / 127.5 - 1
        means = torch.cat([means[:1].expand(3, -1, -1, -1), means])
        blocks = means.unflatten(0, (-1, 4)).unflatten(2, (-1, 2)).unflatten(4, (-1, 2))
        # [f, 4 frames, H/8, 2, W/8, 2, 3] -> [f, 4 frames, 2, 2, 3, H/8, W/8]
        blocks = blocks.permute(0, 1, 3, 5, 6, 2, 4)
        colors = blocks.mean(1).flatten(1, 3)
        change = (blocks[:, 2:].mean(1) - blocks[:, :2].mean(1)).mean(3).flatten(1, 2)
        return _SCALE * torch.cat([colors, change], dim=1).transpose(0, 1)[None]

    def decode(self, latents: Tensor) -> Tensor:
        """Paint the cells again."""
        z = latents[0].float().transpose(0, 1) / _SCALE
        colors = z[:, :12].unflatten(1, (2, 2, 3))
        change = z[:, 12:].unflatten(1, (2, 2))[:, :, :, None]
        sign = torch.tensor([-0.5, -0.5, 0.5, 0.5], device=z.device).view(1, 4, 1, 1, 1, 1, 1)
        # [f, 4 frames, 2, 2, 3, H/8, W/8] -> [4 f frames, H/4, W/4, 3]
        blocks = colors[:, None] + sign * change[:, None]
        cells = blocks.permute(0, 1, 5, 2, 6, 3, 4).flatten(4, 5).flatten(2, 3).flatten(0, 1)
        # Frame 0 was counted four times; it has no change within.
        first = colors[:1].permute(0, 4, 1, 5, 2, 3).flatten(3, 4).flatten(1, 2)
        cells = torch.cat([first, cells[4:]])
        pixels = ((cells.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return pixels.repeat_interleave(_CELL, 1).repeat_interleave(_CELL, 2).cpu()

    def encode_text(self, text: str) -> Tensor:
        """Make one row of zeros; refuse any text."""
        return self.encode_no_text(text)

    def encode_image(self, first: Tensor, last: Tensor) -> Tensor | None:
        """Return None: what the model sees of the clip lies in the condition's channels."""
        return None


def _random_transformer(seed: int) -> WanTransformer3DModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WanTransformer3DModel.from_config(dict(MOSAIC_CONFIG))


def _read_transformer(folder: Path) -> WanTransformer3DModel:
    # Not `from_pretrained`, which wants accelerate for a model that keeps parts in float32.
    transformer = WanTransformer3DModel.from_config(WanTransformer3DModel.load_config(folder))
    transformer.load_state_dict(load_file(folder / SAFETENSORS_WEIGHTS_NAME))
    return transformer


def _cast(transformer: WanTransformer3DModel, dtype: torch.dtype) -> WanTransformer3DModel:
    """Cast the weights as `from_pretrained` does; `to` would cast all."""
    keep = transformer._keep_in_fp32_modules
    for name, weight in transformer.named_parameters():
        if not any(part in name for part in keep):
            weight.data = weight.data.to(dtype)
    return transformer


def _read_mark(folder: Path) -> dict[str, Any]:
    path = folder / MARK_NAME
    if not path.is_file():
        raise FileNotFoundError(f"base: there is no {path}; wanted the folder of a mosaic base")
    mark: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    kind = (mark.get("format"), mark.get("version"))
    if kind != (_FORMAT, _VERSION):
        raise ValueError(f"base: {path} says {kind}, wanted {(_FORMAT, _VERSION)}")
    return mark
