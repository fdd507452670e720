"""Times the op beside PyTorch's own attention: `python benchmarks/attention.py --help`.

Random data, every contender in turn within each round, medians; the ratio is the median of the
ratios of a round. A round in which the process had to wait for a core (Linux: more than 3 % of its
time in the run queue) is dropped and said.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

import genhoi_kernels as gk

Contender = tuple[str, Callable[[], Tensor], list[Tensor]]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MAX_QUEUED = 0.03


def contenders(grid: tuple[int, int, int], heads: int, dim: int, dtype: torch.dtype) -> list:
    """Name, call and differentiable inputs of each; the first is the peer of the ratios."""
    torch.manual_seed(0)
    f, h, w = grid
    n, ref_grid = f * h * w, (16, 16)
    m = ref_grid[0] * ref_grid[1]

    def randn(tokens: int) -> Tensor:
        return torch.randn(1, tokens, heads, dim).to(dtype).requires_grad_()

    q, k, v, k_ref, v_ref = randn(n), randn(n), randn(n), randn(m), randn(m)
    mask = torch.zeros(grid, dtype=torch.bool)
    mask[:, h // 3 : h // 3 + max(h // 3, 1), w // 4 : w // 4 + max(w // 3, 1)] = True
    mask = mask.view(1, n)
    # SDPA's layout and its joined keys and values are made beforehand: it is timed at its best.
    sdpa = [
        x.detach().transpose(1, 2).contiguous().requires_grad_()
        for x in (q, torch.cat([k, k_ref], 1), torch.cat([v, v_ref], 1))
    ]
    additive = torch.zeros(n, n + m, dtype=dtype)
    additive[:, n:].masked_fill_(~mask.T, -torch.inf)
    gate = gk.FlowGate(dim)
    ropes = {
        "rope": gk.VideoRope(grid, head_dim=dim),
        "ref_rope": gk.HeadSlidingRope(grid, [ref_grid], head_dim=dim, num_heads=heads),
    }
    ours = [q, k, v, k_ref, v_ref]
    return [
        ("SDPA over N + M, no mask", lambda: F.scaled_dot_product_attention(*sdpa), sdpa),
        (
            "SDPA, additive mask",
            lambda: F.scaled_dot_product_attention(*sdpa, attn_mask=additive),
            sdpa,
        ),
        ("this op, mask gate", lambda: gk.reference_attention(*ours, mask=mask), ours),
        (
            "this op, mask gate, rotations, flow gate",
            lambda: gk.reference_attention(*ours, mask=mask, gate=gate, **ropes),
            ours,
        ),
    ]


def queued_seconds() -> float:
    """Time that the threads of this process spent waiting for a core (0 where Linux can't say)."""
    return (
        sum(int(p.read_text().split()[1]) for p in Path("/proc/self/task").glob("*/schedstat"))
        / 1e9
    )


def seconds(run: Callable[[], object]) -> tuple[float, bool]:
    """Wall time, and whether the threads had to queue for a core."""
    queued, start = queued_seconds(), time.perf_counter()
    run()
    wall = time.perf_counter() - start
    return wall, queued_seconds() - queued > MAX_QUEUED * wall * torch.get_num_threads()


def forward_time(contender: Contender) -> tuple[float, bool]:
    """Forward pass without autograd."""
    with torch.no_grad():
        return seconds(contender[1])


def backward_time(contender: Contender) -> tuple[float, bool]:
    """Backward pass alone."""
    _, call, leaves = contender
    out = call()
    upstream = torch.randn(out.shape).to(out.dtype)
    return seconds(lambda: torch.autograd.grad(out, leaves, upstream))


def measure(
    rounds: int, entries: list[Contender], timer: Callable[[Contender], tuple[float, bool]]
) -> tuple[list[list[float]], int]:
    """Times [round][contender] of the clean rounds, and how many were dropped."""
    clean: list[list[float]] = []
    for entry in entries:
        timer(entry)
    for _ in range(rounds):
        times, queued = zip(*(timer(entry) for entry in entries), strict=True)
        if not any(queued):
            clean.append(list(times))
    return clean, rounds - len(clean)


@click.command()
@click.option("--grid", type=(int, int, int), default=(8, 16, 32), show_default=True)
@click.option("--heads", default=4, show_default=True)
@click.option("--head-dim", default=128, show_default=True)
@click.option("--dtype", type=click.Choice(list(DTYPES)), multiple=True, default=list(DTYPES))
@click.option("--rounds", default=7, show_default=True)
@click.option("--backward/--forward-only", default=True, show_default=True)
def main(
    grid: tuple[int, int, int],
    heads: int,
    head_dim: int,
    dtype: tuple[str, ...],
    rounds: int,
    backward: bool,
) -> None:
    """Time forward and backward of the op and of PyTorch's SDPA on the CPU."""
    console = Console()
    info = gk.build_info()
    console.print(
        f"{info['cpu']}, {torch.get_num_threads()} threads, "
        f"instruction set {info.get('isa', 'none')}, torch {torch.__version__}; "
        f"N = {grid[0] * grid[1] * grid[2]}, M = 256, H = {heads}, D = {head_dim}"
    )
    for name in dtype:
        entries = contenders(grid, heads, head_dim, DTYPES[name])
        for title, timer in (("forward", forward_time), ("backward", backward_time)):
            if title == "backward" and not backward:
                continue
            clean, dropped = measure(rounds, entries, timer)
            table = Table(
                title=f"{name} {title}: {len(clean)} rounds, {dropped} dropped as contended"
            )
            for column in ("", "ms", "time / SDPA without mask"):
                table.add_column(column, justify="left" if not column else "right")
            for i, (label, _, _) in enumerate(entries):
                if not clean:
                    table.add_row(label, "-", "-")
                    continue
                ratio = statistics.median(row[i] / row[0] for row in clean)
                table.add_row(
                    label, f"{statistics.median(row[i] for row in clean) * 1e3:.0f}", f"{ratio:.2f}"
                )
            console.print(table)


if __name__ == "__main__":
    main()
