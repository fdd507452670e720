"""Stage: a CUDA graph of a forward pass: the same bits when replayed, and what launches cost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

import genhoi_kernels as gk
from benchmarks.fused import random_gate
from benchmarks.gpu_report.bench import chosen_backends
from benchmarks.gpu_report.folder import RESULTS, add_rows
from benchmarks.gpu_report.stage import DEVICE, is_emulated, say, stage_options
from genhoi_kernels import HeadSlidingRope, MaskGate, VideoRope
from genhoi_kernels.tune.shapes import HEADLINE, find_shape
from genhoi_kernels.tune.timing import first_line, interleave

_ROUNDS, _SECONDS = 30, 3.0


@click.command()
@stage_options
def main(out: Path, work: Path, tiny: bool) -> None:
    """Measure every backend at a small size, where launches count most."""
    if is_emulated():
        say("the emulated GPU has no CUDA graphs")
        return
    shape = find_shape("tiny") if tiny else HEADLINE["backward"]
    for backend in chosen_backends(out, ()):
        try:
            row = measure(backend, shape)
        except Exception as error:
            row = {"reason": first_line(error)}
        about = describe_call("graphs", shape, backend)
        add_rows(out / RESULTS, [about | row])
        say(about["contender"], row)


def describe_call(suite: str, shape: Any, backend: str) -> dict[str, Any]:
    """Return the columns of a row that say what is called."""
    return {
        "suite": suite,
        "shape": shape.name,
        "direction": "forward",
        "contender": f"this op ({backend})",
        "n": shape.n,
        "m": shape.m,
        "heads": shape.heads,
        "head_dim": shape.head_dim,
        "dtype": "bfloat16",
        "reason": "",
    }


def measure(backend: str, shape: Any) -> dict[str, Any]:
    """Return the milliseconds of a call, and of the replay of its graph.

    Raises:
        RuntimeError: a replay with other numbers gives other bits than the call.
    """
    given = arguments(shape)

    @torch.no_grad()
    def call() -> Tensor:
        out = gk.reference_attention(**given, backend=backend)
        assert isinstance(out, Tensor)
        return out

    graph, captured = capture(call)
    given["q"].neg_()
    graph.replay()
    if not torch.equal(captured, call()):
        raise RuntimeError("the graph's replay gives other bits than the call")
    plain, replayed = interleave(
        [call, graph.replay], device=DEVICE, rounds=_ROUNDS, seconds=_SECONDS
    )
    return {"ms": 1e3 * replayed.median(), "setting": f"graph; alone {1e3 * plain.median():.4g} ms"}


def capture(call: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """Capture the graph of a call that is warm. Returns it and the tensor that it writes."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    return graph, captured


def arguments(shape: Any) -> dict[str, Any]:
    """Return the arguments of a call with everything: rotations, mask, references, token gate."""
    draw = torch.Generator(DEVICE).manual_seed(0)

    def normal(tokens: int) -> Tensor:
        x = torch.empty(1, tokens, shape.heads, shape.head_dim, dtype=torch.bfloat16, device=DEVICE)
        return x.normal_(generator=draw)

    ref_rope = HeadSlidingRope(
        shape.grid, (shape.ref_grid,), head_dim=shape.head_dim, num_heads=shape.heads
    )
    tokens = {name: normal(shape.n) for name in "qkv"}
    tokens |= {name: normal(shape.m) for name in ("k_ref", "v_ref")}
    return tokens | {
        "mask": MaskGate.build(shape.mask().to(DEVICE)),
        "rope": VideoRope(shape.grid, head_dim=shape.head_dim),
        "ref_rope": ref_rope,
        "gate": random_gate(shape.head_dim, torch.bfloat16, DEVICE),
    }


if __name__ == "__main__":
    main()
