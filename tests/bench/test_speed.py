"""No slower than a few times PyTorch's own attention; numbers: `genhoi bench`."""

from __future__ import annotations

import pytest
import torch

from benchmarks import bare_attention
from benchmarks.case import Case
from genhoi_kernels.backends import native
from genhoi_kernels.tune import timing
from genhoi_kernels.tune.problem import Direction
from genhoi_kernels.tune.shapes import Shape

MOST = 4.0
ROUNDS = 5


@pytest.mark.slow
@pytest.mark.native
@pytest.mark.skipif(not native.module, reason=native.missing_reason)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_within_four_times_sdpa(
    dtype: torch.dtype, direction: Direction, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its memory is not poisoned: filling outputs would count for some and not for others.
    torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(timing, "is_contended", lambda *_: False)  # so loose a bound needs none
    cpu = torch.device("cpu")
    shape = Shape("1024", (4, 16, 16))
    case = Case(
        "attention",
        shape,
        dtype,
        direction,
        cpu,
        torch.get_num_threads(),
        ("sdpa",),
        bare_attention.build_attention,
    )
    ours, peer = (c for c in bare_attention.build_attention(case).contenders if c.run is not None)
    assert ours.run is not None and peer.run is not None
    ours.run(), peer.run()
    turns = [ours.turn, peer.turn]
    timed = timing.interleave(
        [ours.run, peer.run], device=cpu, rounds=ROUNDS, seconds=60, turns=turns
    )
    slower = timing.ratio(*timed)
    assert slower is not None and slower < MOST
