"""Named suites: which cases they consist of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

import genhoi_kernels as gk
from benchmarks import fused, norm_rope
from benchmarks.bare_attention import build_attention, op_backends, op_label
from benchmarks.block import LABELS, build_block
from benchmarks.case import Case
from benchmarks.fused import build_fused
from benchmarks.norm_rope import build_norm_rope, build_reference_frames
from benchmarks.peers import GATHERED, PEERS, strongest
from benchmarks.shapes import merge_equal, sweep_shapes
from genhoi_kernels.tune.problem import Direction
from genhoi_kernels.tune.shapes import HEADLINE, SHAPES, Shape, find_shape, reduce_shape

__all__ = ["DEFAULT_SUITES", "DTYPES", "SUITES", "Selection", "contender_labels", "select"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEFAULT_SUITES = ("attention", "fused", "norm_rope", "block", "sweeps")

# Operations of a forward pass above which a shape loses heads, and frames.
_CPU_WORK, _CPU_FRAMES = 0.15e12, 0.6e12
_GPU_WORK = 1e15
_GPU_SHAPES = ("wan1.3b-480p", "wan14b-720p")  # what people run, beside the headline's
_MODEL_SHAPES = tuple(name for name in SHAPES if name.startswith("wan"))
_DIRECTIONS: tuple[Direction, ...] = ("forward", "backward")


@dataclass(frozen=True)
class Selection:
    """What to measure.

    Attributes:
        device: where.
        threads: of torch on a CPU.
        shapes: names; empty for each suite's own.
        peers: names; None for each suite's own.
        dtypes: names; empty for each suite's own.
        steps: denoising steps of the suite `block`.
        backends: of the op; empty for all that are usable.
    """

    device: torch.device
    threads: int
    shapes: tuple[str, ...] = ()
    peers: tuple[str, ...] | None = None
    dtypes: tuple[str, ...] = ()
    steps: int = 2
    backends: tuple[str, ...] = ()

    def given_or(self, shapes: Sequence[Shape], *, on_gpu: Sequence[str] = ()) -> list[Shape]:
        """Return the named shapes, else a suite's own, reduced to what the device can do.

        Args:
            shapes: the suite's own.
            on_gpu: names of more of them where a GPU has the time.
        """
        more = on_gpu if self.device.type == "cuda" else ()
        chosen = [find_shape(name) for name in self.shapes]
        chosen = chosen or [*shapes, *(find_shape(name) for name in more)]
        if self.device.type != "cpu":
            return [reduce_shape(shape, _GPU_WORK) for shape in chosen]
        return merge_equal(
            [reduce_shape(shape, _CPU_WORK, most_frames=_CPU_FRAMES) for shape in chosen]
        )

    def given_dtypes(self, names: Sequence[str] = ("bfloat16",)) -> list[torch.dtype]:
        """Return the named dtypes, else a suite's own."""
        return [DTYPES[name] for name in self.dtypes or names]

    def sweep_peers(self) -> tuple[str, ...]:
        """Return the named peers, else those that the sweeps have."""
        if self.peers is not None:
            return tuple(self.peers)
        return tuple(dict.fromkeys(("sdpa", "sdpa-additive", strongest(self.device), GATHERED)))


def select(suites: Sequence[str], selection: Selection) -> list[Case]:
    """Yield the cases of some suites, in order.

    Raises:
        ValueError: an unknown suite, shape, peer, dtype or backend; the message says which there
            are.
    """
    for name in suites:
        if name not in SUITES:
            raise ValueError(f"--suite: got {name!r}, wanted one of {', '.join(SUITES)}")
    for name in selection.peers or ():
        if name not in PEERS:
            raise ValueError(f"--peers: got {name!r}, wanted one of {', '.join(PEERS)}")
    for name in selection.dtypes:
        if name not in DTYPES:
            raise ValueError(f"--dtype: got {name!r}, wanted one of {', '.join(DTYPES)}")
    known = [backend.name for backend in gk.backends()]
    for name in selection.backends:
        if name not in known:
            raise ValueError(f"--backends: got {name!r}, wanted one of {', '.join(known)}")
    return [case for name in suites for case in SUITES[name](selection)]


def contender_labels(case: Case) -> list[str]:
    """List the contenders of a case before it is built."""
    if case.build is build_block:
        return list(LABELS)
    ours = [op_label(name) for name in op_backends(case.device, case.backends)]
    if case.build is build_fused:
        return [*ours, *fused.peer_labels(case.device)]
    if case.build is build_norm_rope:
        return [*ours, *norm_rope.PEER_LABELS]
    if case.build is build_reference_frames:
        return [*ours, norm_rope.TWO_PASSES]
    return [*ours, *(peer.label for peer in PEERS.values())]


def _case(suite: str, shape: Shape, dtype: torch.dtype, selection: Selection) -> Case:
    return Case(
        suite=suite,
        shape=shape,
        dtype=dtype,
        direction="forward",
        device=selection.device,
        threads=selection.threads,
        peers=selection.peers,
        build=build_attention,
        steps=selection.steps,
        backends=selection.backends or None,
    )


def _attention(selection: Selection) -> Iterator[Case]:
    for dtype in selection.given_dtypes():
        for direction in _DIRECTIONS:
            for shape in selection.given_or([HEADLINE[direction]], on_gpu=_GPU_SHAPES):
                yield replace(_case("attention", shape, dtype, selection), direction=direction)


def _shapes(selection: Selection) -> Iterator[Case]:
    for dtype in selection.given_dtypes():
        for shape in selection.given_or([SHAPES[name] for name in _MODEL_SHAPES]):
            for direction in _DIRECTIONS:
                yield replace(_case("shapes", shape, dtype, selection), direction=direction)


def _fused(selection: Selection) -> Iterator[Case]:
    for dtype in selection.given_dtypes():
        for shape in selection.given_or([HEADLINE["forward"]], on_gpu=_GPU_SHAPES[:1]):
            yield replace(_case("fused", shape, dtype, selection), build=build_fused)


def _norm_rope(selection: Selection) -> Iterator[Case]:
    for dtype in selection.given_dtypes():
        for direction in _DIRECTIONS:
            for shape in selection.given_or([HEADLINE["forward"]], on_gpu=_GPU_SHAPES[:1]):
                case = _case("norm_rope", shape, dtype, selection)
                yield replace(case, direction=direction, build=build_norm_rope)


def _reference_frames(selection: Selection) -> Iterator[Case]:
    for case in _norm_rope(selection):
        yield replace(case, suite="reference_frames", build=build_reference_frames)


def _block(selection: Selection) -> Iterator[Case]:
    for dtype in selection.given_dtypes():
        for shape in selection.given_or([HEADLINE["forward"]]):
            yield replace(_case("block", shape, dtype, selection), build=build_block)


def _sweeps(selection: Selection) -> Iterator[Case]:
    chosen = replace(selection, peers=selection.sweep_peers(), shapes=())
    for sweep, shapes in sweep_shapes().items():
        dtypes = chosen.given_dtypes(tuple(DTYPES) if sweep == "dtype" else ("bfloat16",))
        for dtype in dtypes:
            for shape in shapes:
                case = _case("sweeps", shape, dtype, chosen)
                if sweep != "threads":
                    yield case
                elif selection.device.type == "cpu":
                    yield from (replace(case, threads=n) for n in _thread_counts(chosen.threads))


def _thread_counts(most: int) -> list[int]:
    """Return 1, 2, 4, .. and the number of threads there is."""
    return sorted({most, *(2**i for i in range(most.bit_length()) if 2**i <= most)})


def _quick(selection: Selection) -> Iterator[Case]:
    tiny = selection if selection.shapes else replace(selection, shapes=("tiny",))
    for suite in (_attention, _fused, _norm_rope, _block):
        yield from (replace(case, suite="quick " + case.suite) for case in suite(tiny))
    shapes = sweep_shapes()
    for sweep in ("N", "M", "density"):
        for shape in shapes[sweep][:2]:
            small = replace(shape, grid=(shape.grid[0], 4, 4), heads=1, head_dim=32)
            case = _case("quick sweeps", small, torch.float32, selection)
            yield replace(case, peers=selection.sweep_peers())


def _all(selection: Selection) -> Iterator[Case]:
    for suite in (_attention, _fused, _norm_rope, _reference_frames, _block, _sweeps, _shapes):
        yield from suite(selection)


SUITES: dict[str, Callable[[Selection], Iterator[Case]]] = {
    "attention": _attention,
    "fused": _fused,
    "norm_rope": _norm_rope,
    "reference_frames": _reference_frames,
    "block": _block,
    "sweeps": _sweeps,
    "shapes": _shapes,
    "all": _all,
    "quick": _quick,
}
