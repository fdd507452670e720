"""Stage: every candidate of every Triton kernel is compiled, then timed; the fastest are kept."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

import genhoi_kernels as gk
from benchmarks.fused import random_gate
from benchmarks.gpu_report.folder import CONFIGS, TUNING, add_rows
from benchmarks.gpu_report.stage import DEVICE, say, stage_options
from genhoi_kernels import MaskGate
from genhoi_kernels.backends.triton import backend
from genhoi_kernels.backends.triton.tuning import autotune, configs
from genhoi_kernels.backends.triton.tuning.candidates import candidates
from genhoi_kernels.backends.triton.tuning.configs import Config, Key
from genhoi_kernels.tune.shapes import Shape
from genhoi_kernels.tune.timing import first_line

_SHAPES = {
    128: Shape("tuning", (16, 16, 32), (32, 32), heads=12, head_dim=128),
    64: Shape("tuning", (16, 16, 32), (32, 32), heads=12, head_dim=64),
}
_TINY = Shape("tiny", (2, 8, 8), (4, 4), heads=1, head_dim=128)
_MOST_PROCESSES = 12


@click.command()
@stage_options
@click.option("--compile-only", is_flag=True, help="On all cores, for the timing to find.")
@click.option("--head-dim", "head_dims", multiple=True, type=int, default=(128,))
def main(out: Path, work: Path, tiny: bool, compile_only: bool, head_dims: tuple[int, ...]) -> None:
    """Compile the candidates, or time them."""
    shapes = [_TINY] if tiny else [_SHAPES[head_dim] for head_dim in head_dims]
    for shape in shapes:
        if compile_only:
            _compile(shape, tiny=tiny)
        else:
            _time(out, shape, tiny=tiny)
    # Autograd's threads may still let go of Python objects, which ends in an abort where Python
    # winds down meanwhile.
    sys.stdout.flush()
    os._exit(0)


# ---------------------------------------------------------------------------------------- compiling


def _compile(shape: Shape, *, tiny: bool) -> None:
    """Compile by a small call: Triton specialises on no sequence length, so it serves all."""
    small = dataclasses.replace(shape, grid=(2, 8, 16), ref_grid=(4, 8))
    every = [(key, config) for key in _keys(shape) for config in candidates(key.kernel, key.arch)]
    if tiny:
        every = every[::20]
    processes = 1 if tiny else min(os.cpu_count() or 1, _MOST_PROCESSES)
    if processes == 1:
        failed = [_compile_one(small, *one) for one in every]
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, mp_context=context) as pool:
            shapes, keys, tried = [small] * len(every), *zip(*every, strict=True)
            failed = list(pool.map(_compile_one, shapes, keys, tried))
    for (key, config), error in zip(every, failed, strict=True):
        if error:
            say(f"{key.kernel} {describe(config)}: {error}")
    say(f"{failed.count('')} of {len(every)} candidates compile")


def _compile_one(shape: Shape, key: Key, config: Config) -> str:
    """Compile a candidate by a call; the error, or ""."""
    forward, backward = calls(shape)
    try:
        with configs.trying(key, config):
            (forward if key.kernel == "forward" else backward)()
            torch.cuda.synchronize(DEVICE)
    except Exception as error:  # compilers and drivers raise whatever they like
        return first_line(error)
    return ""


def _keys(shape: Shape) -> Iterator[Key]:
    arch = backend.architecture(DEVICE)
    for kernel in configs.KERNELS:
        yield configs.key_of(arch, kernel, torch.bfloat16.itemsize, shape.head_dim)


# ------------------------------------------------------------------------------------------- timing


def _time(out: Path, shape: Shape, *, tiny: bool) -> None:
    """Run the project's own autotuning, with every candidate's time kept."""

    def keep(key: Key, config: Config, ms: float | None) -> None:
        about = {"kernel": key.kernel, "head_dim": key.head_dim, "triton": key.triton}
        sizes = {"n": shape.n, "m": shape.m, "heads": shape.heads}
        row = about | sizes | {"config": describe(config), "ms": "" if ms is None else ms}
        add_rows(out / TUNING, [row])
        say(row)

    os.environ["GENHOI_AUTOTUNE"] = "1"
    if tiny:  # a dry run: calls that are not worth timing, and two candidates of each kernel
        autotune.MINIMUM_ROWS = 1
        autotune.candidates = lambda kernel, arch: candidates(kernel, arch)[:2]
    with autotune.told(keep):
        forward, backward = calls(shape)
        forward()
        backward()
        torch.cuda.synchronize(DEVICE)
    shutil.copyfile(autotune.table_path(DEVICE), out / CONFIGS)


def calls(shape: Shape) -> tuple[Any, Any]:
    """Give a forward pass, and ones with backward passes that run every kernel with candidates."""
    draw = torch.Generator(DEVICE).manual_seed(0)

    def normal(tokens: int) -> Tensor:
        x = torch.empty(1, tokens, shape.heads, shape.head_dim, dtype=torch.bfloat16, device=DEVICE)
        return x.normal_(generator=draw).requires_grad_()

    leaves = [normal(n) for n in (shape.n, shape.n, shape.n, shape.m, shape.m)]
    mask = MaskGate.build(shape.mask().to(DEVICE))
    upstream = normal(shape.n).detach()
    gate = random_gate(shape.head_dim, torch.bfloat16, DEVICE)

    def call(**options: Any) -> Tensor:
        out = gk.reference_attention(*leaves, mask=mask, backend="triton", **options)
        assert isinstance(out, Tensor)
        return out

    def backward() -> None:
        for options in ({}, {"gate": gate}):
            torch.autograd.grad(call(**options), leaves, upstream)

    return torch.no_grad()(call), backward


def describe(config: Config) -> str:
    """Describe a configuration in one line."""
    blocks = f"{config.block_m}x{config.block_n}x{config.block_r}"
    options = f"{config.num_warps} warps {config.num_stages} stages"
    descriptors = " descriptors" if config.descriptors else ""
    gate = f" gate {config.block_f}" if config.block_f else ""
    references = f" references {config.stages_r} stages" if config.stages_r > 1 else ""
    return f"{blocks} {options}{descriptors}{gate}{references}"


if __name__ == "__main__":
    main()
