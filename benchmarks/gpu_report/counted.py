"""The program that `counters.py` runs under Nsight Compute: each main kernel, warm, a few times."""

from __future__ import annotations

import click
import torch
from torch import Tensor

import genhoi_kernels as gk
from benchmarks.gpu_report.stage import DEVICE
from benchmarks.shapes import Shape, find_shape
from genhoi_kernels import MaskGate

# Of its heads a third: enough to fill any GPU, and Nsight Compute runs each kernel many times.
_SHAPE, _HEADS = "wan1.3b-480p", 4
WARM = 1


@click.command()
@click.option("--backend", required=True)
@click.option("--tiny", is_flag=True)
def main(backend: str, tiny: bool) -> None:
    """WARM calls with a backward pass, where there is one, then one more."""
    shape = find_shape("tiny") if tiny else find_shape(_SHAPE)
    heads = shape.heads if tiny else _HEADS
    for _ in range(WARM + 1):
        run(backend, shape, heads)
        torch.cuda.synchronize(DEVICE)


def run(backend: str, shape: Shape, heads: int) -> None:
    """Forward, and backward unless the backend has none."""
    draw = torch.Generator(DEVICE).manual_seed(0)

    def normal(tokens: int) -> Tensor:
        x = torch.empty(1, tokens, heads, shape.head_dim, dtype=torch.bfloat16, device=DEVICE)
        return x.normal_(generator=draw).requires_grad_()

    leaves = [normal(n) for n in (*[shape.n] * 3, *[shape.m] * 2)]
    mask = MaskGate.build(shape.mask().to(DEVICE))
    with torch.no_grad():
        gk.reference_attention(*leaves, mask=mask, backend=backend)
    try:
        out = gk.reference_attention(*leaves, mask=mask, backend=backend)
    except ValueError:  # it takes no call that needs gradients
        return
    assert isinstance(out, Tensor)
    out.backward(normal(shape.n).detach())


if __name__ == "__main__":
    main()
