"""Recognises tensors that came as [B, H, N, D], the layout of scaled_dot_product_attention."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from genhoi_kernels import notices
from genhoi_kernels.mask_gate import MaskGate
from genhoi_kernels.rope import HeadSlidingRope, ReferenceFramesRope, VideoRope

KEYS, REF_KEYS = ("k", "v"), ("k_ref", "v_ref")
TENSORS = ("q", *KEYS, *REF_KEYS)
MOST_HEADS = 256
"""More heads than a model has: what nothing else gives away is then doubted in a warning."""


class LayoutWarning(UserWarning):
    """A call was computed whose tensors look like [B, H, N, D]."""


def with_hint(error: ValueError, given: Mapping[str, Any]) -> ValueError:
    """Return the error, which says of a wrong layout too where that would explain it.

    Args:
        error: what a check found.
        given: arguments of ``reference_attention`` by name, as far as there are any.
    """
    tensors = {name: given[name] for name in TENSORS if isinstance(given.get(name), Tensor)}
    if "q" not in tensors or any(x.dim() != 4 for x in tensors.values()):
        return error
    turned = _turned({name: (x.shape[1], x.shape[2]) for name, x in tensors.items()}, given)
    if not turned:
        return error
    return ValueError(f"{error}; {_hint(turned)}")


def with_hint_of(
    name: str, error: ValueError, x: Tensor, check: Callable[[Tensor], None]
) -> ValueError:
    """Return the error, with the hint if ``check`` takes the tensor ``name``, x, transposed."""
    try:
        check(x.transpose(1, 2))
    except ValueError:
        return error
    return ValueError(f"{error}; {_hint((name,))}")


def _hint(names: tuple[str, ...]) -> str:
    *most, last = names
    return (f"{', '.join(most)} and {last} look " if most else f"{last} looks ") + (
        f"like [B, H, N, D], scaled_dot_product_attention's layout; the op takes [B, N, H, D]: "
        f"{', '.join(f'{name}.transpose(1, 2)' for name in names)}"
    )


def _turned(
    sizes: Mapping[str, tuple[int, int]], given: Mapping[str, Any]
) -> tuple[str, ...] | None:
    """Find the tensors that have to exchange N and H, where all sizes fit then and only then.

    Of several answers (q, or else k and v) the one with fewer heads, then with fewer tensors.
    """
    fitting = []
    for count in range(len(sizes) + 1):
        for names in itertools.combinations(sizes, count):
            exchanged = {n: s[::-1] if n in names else s for n, s in sizes.items()}
            if _fit(exchanged, given):
                fitting.append((exchanged["q"][1], count, names))
    return None if not fitting or fitting[0][1] == 0 else min(fitting)[2]


def _fit(sizes: Mapping[str, tuple[int, int]], given: Mapping[str, Any]) -> bool:
    """Say whether (tokens, heads) of the tensors fit each other, the mask and the rotations."""
    rows, heads = sizes["q"]
    keys, ref_tokens = ([sizes[n][0] for n in names if n in sizes] for names in (KEYS, REF_KEYS))
    rope, ref_rope, mask = (given.get(name) for name in ("rope", "ref_rope", "mask"))
    bits = mask.bits if isinstance(mask, MaskGate) else mask
    of_rows = isinstance(rope, (VideoRope, ReferenceFramesRope))
    keys += [rows] if of_rows else []
    ref_tokens += _reference_tokens(given)
    return (
        all(h == heads for _, h in sizes.values())
        and len(set(keys)) <= 1
        and len(set(ref_tokens)) <= 1
        and (not of_rows or rope.fits(rows))
        and (not isinstance(rope, ReferenceFramesRope) or rope.heads_fit(heads))
        and (not isinstance(ref_rope, HeadSlidingRope) or ref_rope.fits(heads))
        and (not isinstance(bits, Tensor) or bits.shape[-1:] == (rows,))
    )


def _reference_tokens(given: Mapping[str, Any]) -> list[int]:
    """Return M, where something besides k_ref and v_ref says it."""
    if given.get("ref_lengths") is not None:
        return [sum(given["ref_lengths"])]
    ref_rope = given.get("ref_rope")
    return [sum(ref_rope.lengths)] if isinstance(ref_rope, HeadSlidingRope) else []


def doubt(q: Tensor, given: Mapping[str, Any]) -> None:
    """Warn, once, of a call with hardly a token and more heads than any model has.

    Only where nothing that came with q, k and v contradicts the other layout.
    """
    _, tokens, heads, _ = q.shape
    if heads <= MOST_HEADS or heads <= 4 * tokens or torch.compiler.is_compiling():
        return
    rope = given["rope"]
    if given["mask"] is not None or (rope is not None and rope.token_offset is None):
        return
    notices.warn_once(
        "layout",
        f"q: got {heads} heads of {tokens} tokens, shape {tuple(q.shape)}; "
        f"scaled_dot_product_attention takes [B, H, N, D], the op [B, N, H, D]: if q, k and v come "
        f"as for the former, pass q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)",
        LayoutWarning,
    )
