"""The Triton at hand: its version, and what it compiles wrongly, so that nobody is given it.

Triton 3.6 on sm_90:

- Between cp.async, which fills shared memory for a pipelined loop, and the wgmma that reads it,
  fence.proxy.async is missing (triton issue 9610, mended in 3.7): the product may read what was
  there before. A pipelined loop copies by tensor descriptors (TMA), whose barrier needs no fence;
  where a tensor has no descriptor, the loop is not pipelined. Nor is the loop over the references.
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
    """Give Triton's major and minor number, such as "3.6", by which configurations are kept."""
    return ".".join(triton.__version__.split(".")[:2])


def numbers(version: str) -> tuple[int, ...]:
    """Split a version, so that versions compare in their order."""
    return tuple(int(number) for number in version.split("."))


def is_sound(arch: str) -> bool:
    """Say whether none of the above holds for this Triton and architecture."""
    return arch != "sm_90" or numbers(version()) >= _MENDED


def allows(config: Config, arch: str) -> bool:
    """Say whether a configuration's loops are compiled right for tensors with descriptors."""
    copies_by_tma = config.descriptors or config.num_stages == 1
    return is_sound(arch) or (copies_by_tma and config.stages_r == 1)


def safe_form(config: Config, arch: str, *, has_descriptors: bool) -> Config:
    """Change a configuration as far as it must be, to be compiled right.

    has_descriptors: tensor descriptors can describe what the loop copies. Every launch whose loop
    multiplies what it copies takes its configuration through here.
    """
    if is_sound(arch):
        return config
    config = replace(config, stages_r=1)
    if config.num_stages == 1:
        return config
    return replace(config, descriptors=True) if has_descriptors else replace(config, num_stages=1)
