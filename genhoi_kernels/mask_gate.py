"""The hard mask gate: which video tokens see which reference (docs/op.md, "Mask gate")."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_SEGMENTS = 32
TILE_ROWS = 64
"""Rows of a tile in ``MaskGate.tile_bits``; GPU query tiles are multiples of it."""

_INTEGER_DTYPES = (torch.uint8, torch.int32, torch.int64)


def mask_bits(mask: Tensor) -> Tensor:
    """Turn a mask into bits: ``[B or 1, N]`` int32, bit r set where the row sees reference r.

    Args:
        mask: ``[B or 1, N]``; bool (True sees every reference) or uint8, int32, int64 (bit r:
            sees reference r). Values are not inspected on the host.

    Raises:
        TypeError: no tensor, or another dtype. ValueError: another number of dimensions.
    """
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask: got {type(mask).__name__}, wanted a tensor")
    if mask.dtype != torch.bool and mask.dtype not in _INTEGER_DTYPES:
        soft = "; mask > 0.5 makes a hard one, ref_bias weighs a reference"
        raise TypeError(
            f"mask: got {mask.dtype}, wanted torch.bool, uint8, int32 or int64"
            f"{soft if mask.is_floating_point() else ''}"
        )
    if mask.dim() != 2:
        raise ValueError(f"mask: got shape {tuple(mask.shape)}, wanted [B or 1, N]")
    if mask.dtype == torch.bool:
        return mask.to(torch.int32).neg()  # -1 has every bit set
    if mask.dtype == torch.int64:
        # The low 32 bits, as a signed number: a plain cast would be undefined past 2^31.
        low = mask & 0xFFFFFFFF
        mask = torch.where(low >= 2**31, low - 2**32, low)
    return mask.to(torch.int32)


@dataclass(frozen=True, eq=False)
class MaskGate:
    """A mask made ready once a clip, so that no later call has to synchronise with the host.

    No shape depends on the mask's values: compiled programs take any gate of one size.

    Attributes:
        bits: ``[B or 1, N]`` int32; bit r: this row sees reference r.
        tile_bits: ``[B or 1, ceil(N / TILE_ROWS)]`` int32; the OR of a tile's bits.
        rows: ``[B or 1, N]`` int32; row numbers, those that see anything first, else in order.
        row_counts: ``[B or 1]`` int64, on the CPU always; how many rows see anything.

    Example:
        >>> import torch
        >>> from genhoi_kernels import MaskGate
        >>> bits = torch.tensor([[0, 1, 3, 2]])  # nothing, reference 0, both, reference 1
        >>> MaskGate.build(bits).tile_bits  # a tile of rows with everything in it
        tensor([[3]], dtype=torch.int32)
    """

    bits: Tensor
    tile_bits: Tensor
    rows: Tensor
    row_counts: Tensor

    @staticmethod
    def build(mask: Tensor) -> MaskGate:
        """Build from a mask as ``mask_bits`` takes it; synchronises with the host once.

        Raises:
            TypeError, ValueError: see ``mask_bits``; or a mask without values, on device meta.

        Example:
            >>> import torch
            >>> from genhoi_kernels import MaskGate, reference_attention
            >>> q, k, v = torch.randn(3, 1, 6, 2, 16)  # [B, N, H, D]
            >>> k_ref, v_ref = torch.randn(2, 1, 4, 2, 16)  # [B or 1, M, H, D]
            >>> gate = MaskGate.build(torch.tensor([[0, 0, 1, 1, 1, 0]], dtype=torch.bool))
            >>> gate.row_counts  # three rows see the reference
            tensor([3])
            >>> reference_attention(q, k, v, k_ref, v_ref, mask=gate).shape
            torch.Size([1, 6, 2, 16])
        """
        bits = mask_bits(mask)
        if bits.device.type == "meta":
            raise ValueError(
                "mask: got device meta, wanted a mask with values, because its rows are counted; "
                "build the gate on a device that has them, then .to('meta')"
            )
        seen = bits != 0
        return MaskGate(
            bits=bits,
            tile_bits=tile_bits(bits),
            rows=(~seen).byte().argsort(dim=1, stable=True).to(torch.int32),
            row_counts=seen.sum(1).cpu(),
        )

    def tensors(self) -> list[Tensor]:
        """Return its tensors, in the order of the attributes."""
        return [self.bits, self.tile_bits, self.rows, self.row_counts]

    def to(self, device: torch.device | str) -> MaskGate:
        """Return the same gate on another device."""
        return MaskGate(
            bits=self.bits.to(device),
            tile_bits=self.tile_bits.to(device),
            rows=self.rows.to(device),
            row_counts=self.row_counts,
        )


def tile_bits(bits: Tensor) -> Tensor:
    """Return the OR of the bits ``[B or 1, N]`` of each TILE_ROWS rows, without synchronising."""
    batch, rows = bits.shape
    tiles = -(-rows // TILE_ROWS)
    padded = bits.new_zeros(batch, tiles * TILE_ROWS)
    padded[:, :rows] = bits
    tile = padded.view(batch, tiles, TILE_ROWS)
    while tile.shape[-1] > 1:  # OR by halves: torch has no bitwise reduction
        half = tile.shape[-1] // 2
        tile = tile[..., :half] | tile[..., half:]
    return tile[..., 0]
