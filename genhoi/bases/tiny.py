"""The tiny base: a real Wan transformer on pixels, small enough to be trained and used on a CPU.

Its codec stands in the VAE's place with the same shapes, 4 x in time, 8 x in space, 16 channels.
Each block of 4 frames of 8 x 8 pixels becomes 12 mean colours, of its 2 x 2 quarters, and 4 changes
of brightness, each quarter's mean over the last two frames less that over the first two. Frame 0
counts four times. Decoding inverts this as far as it goes: encode(decode(z)) is z up to rounding to
8 bits, and decode(encode(frames)) is a mosaic of 4 x 4 pixels.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save
from torch import Tensor

from genhoi.bases.base import Base, EditDefaults, TrainedOn
from genhoi.media import atomic_path

__all__ = [
    "SHIPPED",
    "SHIPPED_ADAPTER",
    "SHIPPED_BASE",
    "TINY_CONFIG",
    "UNTRAINED",
    "TinyBase",
]

SHIPPED = "tiny"
UNTRAINED = "tiny-untrained"


# Head dim 64: 12 temporal frequencies, so that a fixed frame's voice fades instead of returning.
TINY_CONFIG = {
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

_WEIGHTS = Path(__file__).resolve().parents[1] / "weights" / "tiny"
SHIPPED_BASE, SHIPPED_ADAPTER = _WEIGHTS / "base", _WEIGHTS / "adapter"

_MARK = "tiny_base.json"
_FORMAT, _VERSION = "genhoi-tiny-base", 1
_CELL = 4
_SCALE = 2.0  # brings the latents near unit variance, which flow matching's noise has


class TinyBase(Base):
    """The codec that this module describes, around a small transformer.

    Args:
        folder: of trained weights, as `save_pretrained` writes them; `SHIPPED_BASE` has those that
            come with the package. None for random ones, which paint noise.
        seed: of random weights.
        device: where to compute.
        dtype: of the weights.
        transformer: to be used instead of the folder's.

    Raises:
        FileNotFoundError, ValueError: no such weights in the folder.
    """

    takes_text = False
    frames_apart = True
    can_offload = False
    merges_video_lora = True
    defaults = EditDefaults(
        steps=25, guidance=1.0, shift=3.0, window=49, mask_rule="any", size=(96, 96), crop_below=1.0
    )
    # Masks: percentiles 1 and 99 of 60 clips of its training, 0.14 and 0.32, widened by a half.
    trained_on = TrainedOn(sizes=((96, 96),), frames=49, mask_shares=(0.09, 0.48), outlines=True)
    caution = (
        "The tiny base shows how an edit works; it is no tool for real clips. It paints a square "
        "of 96 x 96 pixels in cells of 4 x 4, so an object keeps its colours and loses its shape "
        "and its letters. For more, name a Wan2.1 or VACE pipeline (--base) and an adapter "
        "that was trained on it (--adapter)."
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
        self.trained = folder is not None or transformer is not None
        if transformer is not None:
            self.about = "tiny"
        elif folder is not None:
            self.about = f"tiny: {_read_mark(folder)['about']}"
            transformer = _cast(_read_transformer(folder), dtype)
        else:
            self.about = f"tiny, UNTRAINED: random weights from seed {seed}; it paints noise"
            transformer = _cast(_random_transformer(seed), dtype)
        self.transformer = transformer.to(self.device).eval()

    @classmethod
    def takes(cls, name: str | os.PathLike[str]) -> bool:
        """Take the two names, and folders that `save_pretrained` wrote."""
        return str(name) in (SHIPPED, UNTRAINED) or (Path(name) / _MARK).is_file()

    @classmethod
    def read_config(cls, name: str | os.PathLike[str]) -> dict[str, Any]:
        """Copy `TINY_CONFIG`; all tiny bases have that one."""
        return dict(TINY_CONFIG)

    @classmethod
    def check_complete(cls, name: str | os.PathLike[str], *, own_transformer: bool = True) -> None:
        """Check that a folder has weights."""
        path = Path(name) / SAFETENSORS_WEIGHTS_NAME
        if own_transformer and (Path(name) / _MARK).is_file() and not path.is_file():
            raise FileNotFoundError(f"base: there is no {path}; wanted the folder of a tiny base")

    @classmethod
    def load(
        cls,
        name: str | os.PathLike[str],
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        seed: int,
        transformer: Any = None,
    ) -> TinyBase:
        """Load trained weights, or make random ones for "tiny-untrained"."""
        folder = {SHIPPED: SHIPPED_BASE, UNTRAINED: None}.get(str(name), Path(name))
        return cls(folder, seed=seed, device=device, dtype=dtype, transformer=transformer)

    @classmethod
    def shipped_adapters(cls, name: str | os.PathLike[str]) -> tuple[Path, ...]:
        """Name the adapter that comes with the trained base."""
        return (SHIPPED_ADAPTER,) if str(name) == SHIPPED else ()

    @classmethod
    def is_untrained(cls, name: str | os.PathLike[str]) -> bool:
        """Tell whether it is "tiny-untrained"."""
        return str(name) == UNTRAINED

    def load_video_lora(self, folder: str | os.PathLike[str]) -> None:
        """Refuse them: training merges them into a tiny base."""
        raise ValueError(
            f"video_lora: got {os.fspath(folder)}, wanted none for this base: a tiny base has such "
            f"weights in it"
        )

    def save_trained(
        self, folder: Path, transformer: Any, *, about: str, full_precision: bool
    ) -> None:
        """Write a folder that is a tiny base again."""
        trained = copy.copy(self)
        trained.transformer = transformer
        trained.save_pretrained(folder, about=about)
        if full_precision:
            transformer.save_pretrained(folder)

    def save_pretrained(self, folder: Path, *, about: str) -> None:
        """Write the transformer, weights in bfloat16, and what marks the folder as a tiny base.

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
        with atomic_path(folder / _MARK, overwrite=True) as temporary:
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
        if text:
            raise ValueError(
                f"prompt: got {text!r}, wanted none: the tiny base was trained without texts"
            )
        zeros = torch.zeros(1, 1, self.transformer.config.text_dim, device=self.device)
        return zeros.to(self.transformer.dtype)

    def encode_image(self, first: Tensor, last: Tensor) -> Tensor | None:
        """Return None: what the model sees of the clip lies in the condition's channels."""
        return None


def _random_transformer(seed: int) -> WanTransformer3DModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WanTransformer3DModel.from_config(dict(TINY_CONFIG))


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
    path = folder / _MARK
    if not path.is_file():
        raise FileNotFoundError(f"base: there is no {path}; wanted the folder of a tiny base")
    mark: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    kind = (mark.get("format"), mark.get("version"))
    if kind != (_FORMAT, _VERSION):
        raise ValueError(f"base: {path} says {kind}, wanted {(_FORMAT, _VERSION)}")
    return mark
