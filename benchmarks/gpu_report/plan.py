"""Which stages there are, in which order and for how long.

Groups run one after another; the stages of a group run side by side, as what one does on the cores
another does not on the GPU. What is timed runs alone. The order is that of value: whatever the time
that is left, the next stage is the one that says most.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["CHECKED", "Group", "Stage", "plan"]

CHECKED = ("cuda", "triton", "flash")
"""Backends that are checked, each in a process of its own."""

_PEERS = ("gathered-cudnn", "gathered", "cudnn", "sdpa-flash", "flash-attn-3")
# torch's own attentions inside the flash backend, which takes FlashAttention-3 where there is one.
_CUDNN = (("GENHOI_FLASH", "torch-cudnn"), ("GENHOI_CUDNN_BACKWARD", "1"))
_TORCH_FLASH = (("GENHOI_FLASH", "torch-flash"),)


@dataclass(frozen=True)
class Stage:
    """A module of this package, run as a program.

    Attributes:
        name: in the log and in `--stages`.
        module: without the package's name.
        seconds: after which it is stopped; less where less is left.
        arguments: of the module's command line.
        environment: variables that differ from the report's own.
    """

    name: str
    module: str
    seconds: float
    arguments: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


Group = tuple[Stage, ...]


def plan(*, ptxas: str | None = None) -> Iterator[Group]:
    """List all groups of stages, in order.

    Args:
        ptxas: another assembler for Triton, which is checked and timed beside the one it brings.
    """
    other = (("TRITON_PTXAS_PATH", ptxas), ("TRITON_CACHE", "other-ptxas")) if ptxas else ()
    yield Stage("environment", "environment", 60), Stage("build", "build", 240)
    checks = [Stage(f"check-{name}", "checks", 80, ("--backend", name)) for name in CHECKED]
    given = ("--backend", "flash", "--name", "flash, cuDNN", "--allow-moves")
    checks.append(Stage("check-flash-cudnn", "checks", 80, given, _CUDNN))
    yield *checks, Stage("precompile", "tuning", 90, ("--compile-only",))
    for name, seconds in (("wan1.3b-480p", 60), ("wan14b-720p", 90), ("wan1.3b-480p-dim-64", 60)):
        yield (Stage(f"bench-{name}", "bench", seconds, (*_shape(name), *_peers(_PEERS))),)
    yield (Stage("tuning", "tuning", 60),)
    yield (Stage("counters", "counters", 60),)
    yield (Stage("tests", "tests", 130),)
    for name, seconds in (("wan1.3b-480p", 30), ("wan14b-720p", 40)):
        given = (*_shape(name), "--backend", "triton", "--setting", "tuned blocks")
        tuned = (("GENHOI_AUTOTUNE", "1"),)
        yield (Stage(f"bench-{name}-tuned", "bench", seconds, given, tuned),)
    yield (Stage("choices", "choices", 20),)
    for name, seconds in (("wan1.3b-480p", 30), ("wan14b-720p", 50)):
        for label, only in (("cudnn", _CUDNN), ("torch-flash", _TORCH_FLASH)):
            given = (*_shape(name), "--backend", "flash", "--setting", f"GENHOI_FLASH={only[0][1]}")
            yield (Stage(f"bench-{name}-{label}", "bench", seconds, given, only),)
    for suite in ("norm_rope", "block", "fused"):
        given = ("--suite", suite, *_shape("wan1.3b-480p"))
        yield (Stage(f"bench-{suite}", "bench", 60, given),)
    yield (Stage("graphs", "graphs", 40),)
    yield (Stage("launches", "launches", 20),)
    given = (*_shape("wan1.3b-480p"), "--backend", "triton", *_peers(("flex", "sdpa")))
    yield (Stage("bench-flex", "bench", 90, given),)
    given = ("--backend", "triton", "--float32")
    yield (Stage("check-triton-float32", "checks", 90, given),)
    if ptxas:
        given = ("--backend", "triton", "--name", "triton, other ptxas")
        yield (Stage("check-triton-ptxas", "checks", 80, given, other),)
        given = (*_shape("wan1.3b-480p"), "--backend", "triton", "--setting", "other ptxas")
        yield (Stage("bench-ptxas", "bench", 60, given, other),)
    yield (Stage("more-tests", "tests", 300, ("--more",)),)


def _shape(name: str) -> tuple[str, ...]:
    return "--shape", name


def _peers(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(word for name in names for word in ("--peer", name))
