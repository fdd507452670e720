"""MaskGate: what it holds, held against one row at a time."""

import pytest
import torch
from torch import Tensor

from genhoi_kernels import MaskGate
from genhoi_kernels.mask_gate import TILE_ROWS

DTYPES = (torch.bool, torch.uint8, torch.int32, torch.int64)


def draw(dtype: torch.dtype, batch: int, rows: int) -> Tensor:
    """Mostly empty, so that some tiles and now and then a whole sample see nothing."""
    generator = torch.Generator().manual_seed(rows + 1000 * batch)
    top = {torch.bool: 2, torch.uint8: 256, torch.int32: 2**31 - 1, torch.int64: 2**62}[dtype]
    bits = torch.randint(0, top, (batch, rows), generator=generator)
    bits *= torch.rand(batch, rows, generator=generator) < 0.02
    if dtype == torch.int64:
        bits[:, ::7] = -bits[:, ::7]
    return bits.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize(("batch", "rows"), [(1, 1), (1, 64), (3, 65), (2, 333), (2, 0), (0, 5)])
def test_fields(dtype: torch.dtype, batch: int, rows: int) -> None:
    mask = draw(dtype, batch, rows)
    gate = MaskGate.build(mask)
    tiles = -(-rows // TILE_ROWS)
    assert gate.bits.shape == (batch, rows) and gate.bits.dtype == torch.int32
    assert gate.tile_bits.shape == (batch, tiles) and gate.tile_bits.dtype == torch.int32
    assert gate.rows.shape == (batch, rows) and gate.rows.dtype == torch.int32

    counts = []
    for b in range(batch):
        seen: list[int] = []
        by_tile = [0] * tiles
        for i in range(rows):
            value = mask[b, i].item()
            # bool: every bit; a wider integer: its low 32 bits.
            bits = (2**32 - 1 if value else 0) if dtype == torch.bool else int(value) % 2**32
            assert gate.bits[b, i].item() % 2**32 == bits
            by_tile[i // TILE_ROWS] |= bits
            if bits:
                seen.append(i)
        assert [bits % 2**32 for bits in gate.tile_bits[b].tolist()] == by_tile
        counts.append(len(seen))
        assert gate.rows[b].tolist() == seen + [i for i in range(rows) if i not in seen]
    assert gate.row_counts.tolist() == counts and gate.row_counts.device.type == "cpu"


@pytest.mark.parametrize("fill", [0, 1])
def test_all_or_nothing(fill: int) -> None:
    gate = MaskGate.build(torch.full((2, 130), bool(fill)))
    assert gate.tile_bits.tolist() == [[-fill] * 3] * 2
    assert gate.rows.tolist() == [list(range(130))] * 2
    assert gate.row_counts.tolist() == [130 * fill] * 2


def test_high_bit_survives() -> None:
    """Bit 31, the sign of an int32, out of either integer."""
    for mask in (
        torch.tensor([[1 << 31, 0]]),
        torch.tensor([[-(1 << 31), 0]], dtype=torch.int32),
        torch.tensor([[(1 << 31) + (1 << 45), 1 << 32]]),
    ):
        gate = MaskGate.build(mask)
        assert gate.bits.tolist() == [[-(1 << 31), 0]]
        assert gate.tile_bits.tolist() == [[-(1 << 31)]]
        assert gate.rows[0, 0] == 0 and gate.row_counts.tolist() == [1]


def test_to_moves_every_tensor() -> None:
    gate = MaskGate.build(draw(torch.uint8, 2, 100))
    for device in ("meta", torch.device("meta")):
        moved = gate.to(device)
        for name in ("bits", "tile_bits", "rows"):
            x, y = getattr(gate, name), getattr(moved, name)
            assert y.device.type == "meta" and (y.shape, y.dtype) == (x.shape, x.dtype), name
        assert torch.equal(moved.row_counts, gate.row_counts)
    same = gate.to("cpu")
    assert torch.equal(same.bits, gate.bits) and torch.equal(same.rows, gate.rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8, torch.int16, torch.bfloat16])
def test_dtype_errors(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=rf"^mask: got {dtype}, wanted torch.bool, uint8"):
        MaskGate.build(torch.zeros(1, 4, dtype=dtype))


@pytest.mark.parametrize("shape", [(4,), (1, 4, 1), ()])
def test_shape_errors(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^mask: got shape .*, wanted \[B or 1, N\]"):
        MaskGate.build(torch.zeros(shape, dtype=torch.bool))
