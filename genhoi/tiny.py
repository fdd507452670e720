"""The tiny base: a real Wan transformer on pixels, with random weights, for tests and demos.

It runs the whole line on a CPU in seconds and needs no download. It is not trained: what it paints
is noise.

Its codec stands in the VAE's place with the same shapes, 4 x in time, 8 x in space, 16 channels.
Each block of 4 frames of 8 x 8 pixels becomes 12 mean colours, of its 2 x 2 quarters, and 4 changes
of brightness, each quarter's mean over the last two frames less that over the first two. Frame 0
counts four times. Decoding inverts this as far as it goes: encode(decode(z)) is z up to rounding to
8 bits, and decode(encode(frames)) is a mosaic of 4 x 4 pixels.
"""

from __future__ import annotations

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor
from torch.nn import functional as F

from genhoi.base import TEXT_TOKENS, Base

__all__ = ["TINY_CONFIG", "TinyBase"]

TINY_CONFIG = {
    "num_attention_heads": 4, "attention_head_dim": 32, "in_channels": 36, "out_channels": 16,
    "text_dim": 32, "freq_dim": 64, "ffn_dim": 256, "num_layers": 2, "image_dim": 16,
    "added_kv_proj_dim": 128, "rope_max_seq_len": 1024,
}  # fmt: skip

_CELL = 4
_IMAGE_SIDE = 16


class TinyBase(Base):
    """See above.

    Args:
        seed: of the weights.
        device: where to compute.
        dtype: of the weights.
    """

    trained = False

    def __init__(
        self,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.device = torch.device(device)
        self.about = f"tiny, UNTRAINED: random weights from seed {seed}; it paints noise"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            transformer = WanTransformer3DModel(**TINY_CONFIG)
            self._letters = torch.randn(256, TINY_CONFIG["text_dim"])
            self._colors = torch.randn(3, TINY_CONFIG["image_dim"])
        keep = transformer._keep_in_fp32_modules
        for name, weight in transformer.named_parameters():
            # As `from_pretrained` does; `to` would cast all.
            if not any(part in name for part in keep):
                weight.data = weight.data.to(dtype)
        self.transformer = transformer.to(self.device).eval()

    def encode(self, frames: Tensor) -> Tensor:
        """See `Base`."""
        count, height, width, _ = frames.shape
        cells = (count, height // _CELL, _CELL, width // _CELL, _CELL, 3)
        means = frames.to(self.device).view(cells).float().mean((2, 4)) / 127.5 - 1
        means = torch.cat([means[:1].expand(3, -1, -1, -1), means])
        blocks = means.unflatten(0, (-1, 4)).unflatten(2, (-1, 2)).unflatten(4, (-1, 2))
        # [f, 4 frames, H/8, 2, W/8, 2, 3] -> [f, 4 frames, 2, 2, 3, H/8, W/8]
        blocks = blocks.permute(0, 1, 3, 5, 6, 2, 4)
        colors = blocks.mean(1).flatten(1, 3)
        change = (blocks[:, 2:].mean(1) - blocks[:, :2].mean(1)).mean(3).flatten(1, 2)
        return torch.cat([colors, change], dim=1).transpose(0, 1)[None]

    def decode(self, latents: Tensor) -> Tensor:
        """See `Base`."""
        z = latents[0].float().transpose(0, 1)
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
        """One row of a random table for each byte."""
        letters = list(text.encode())
        if len(letters) > TEXT_TOKENS:
            raise ValueError(
                f"prompt: got {len(letters)} bytes, wanted at most {TEXT_TOKENS} for the tiny base"
            )
        rows = self._letters[letters]
        rows = F.pad(rows, (0, 0, 0, TEXT_TOKENS - len(letters)))[None]
        return rows.to(self.device, self.transformer.dtype)

    def encode_image(self, first: Tensor, last: Tensor) -> Tensor | None:
        """Mean colours on a 16 x 16 raster and over all, as 257 tokens."""
        pixels = first.permute(2, 0, 1)[None].float() / 127.5 - 1
        cells = F.adaptive_avg_pool2d(pixels, (_IMAGE_SIDE, _IMAGE_SIDE)).flatten(2)
        tokens = torch.cat([cells.mean(2, keepdim=True), cells], dim=2).transpose(1, 2)
        return (tokens @ self._colors).to(self.device, self.transformer.dtype)
