"""The Triton at hand: its version, and what it compiles wrongly, so that nobody is given it.

Triton 3.6 on sm_90:

- Between cp.async, which fills shared memory for a pipelined loop, and the wgmma that reads it,
  fence.proxy.async is missing (triton issue 9610, mended in 3.7): the product may read what was
  there before. A pipelined loop copies by tensor descriptors (TMA), whose barrier needs no fence;
  where a tensor has no descriptor, the loop is not pipelined.
- Its ptxas, 12.8, gives wgmma wrong descriptors where registers are short, as they are where
  float32 is multiplied in three products: wrong sums, or an illegal memory access. 12.9 does not.
  float32 is multiplied without tensor cores there.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING

import triton

if TYPE_CHECKING:
    from genhoi_kernels.backends.triton.tuning.configs import Config

_MENDED = (3, 7)


@functools.lru_cache(maxsize=1)
def version() -> str:
    """Major and minor number, such as "3.6": what configurations are kept by."""
    return ".".join(triton.__version__.split(".")[:2])


def numbers(version: str) -> tuple[int, ...]:
    """A version in the order of versions."""
    return tuple(int(number) for number in version.split("."))


def is_sound(arch: str) -> bool:
    """Whether none of the above holds for this Triton and architecture."""
    return arch != "sm_90" or numbers(version()) >= _MENDED


def allows(cut: Config, arch: str) -> bool:
    """Whether a configuration's loops are compiled right for tensors that have descriptors."""
    return is_sound(arch) or cut.descriptors or cut.num_stages == 1


def safe_form(cut: Config, arch: str, *, has_descriptors: bool) -> Config:
    """The configuration, changed as far as it must be; has_descriptors: what the loop copies has.

    Every launch whose loop multiplies what it copies takes its configuration through here.
    """
    if is_sound(arch) or cut.num_stages == 1:
        return cut
    return replace(cut, descriptors=True) if has_descriptors else replace(cut, num_stages=1)
