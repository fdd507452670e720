"""The CTAs that are executed together: their registers, memories and names in messages."""

from typing import Any, NoReturn

import numpy as np

from .accesses import MemoryAccess
from .async_copies import AsyncCopies
from .bulk_copies import BulkCopies
from .codegen import CodeGenerator
from .collectives import WarpCollectives
from .errors import DeviceTrapError, EmuError, PTXError, UnsupportedError
from .mbarriers import MBarriers
from .memory import GlobalMemory
from .numerics import POISON32, UNSIGNED, i8, u1, u4
from .scheduler import Scheduler
from .shared import Shared
from .syntax import Program
from .wgmma import WarpGroups
from .wmma import WarpMatrices

# NaN in every float type.
POISON = {
    1: False,
    8: np.uint8(0xFF),
    16: np.uint16(0x7FFF),
    32: np.uint32(POISON32),
    64: np.uint64(0x7FF7FFFF7FFF7FFF),
}
REGISTER_TYPE = {1: bool, 8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}


class Batch(
    *(Scheduler, WarpCollectives, MemoryAccess, AsyncCopies, WarpMatrices),
    *(MBarriers, BulkCopies, WarpGroups),
):
    """Registers, shared memory and scheduler state of the CTAs executed together.

    Lanes are the threads of all its CTAs, each CTA padded to whole warps. Methods that generated
    code calls take the pc and ``active``: the lanes that execute, None for all.
    """

    def __init__(
        self,
        memory: GlobalMemory,
        program: Program,
        generator: CodeGenerator,
        *,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        ctas: np.ndarray,
        params: np.ndarray,
        shared_bytes: int,
        dynamic_bytes: int,
        race: str | None,
        init: str | None,
        schedule: str,
        eager: bool,
        report: Any,
    ) -> None:
        self.memory, self.program, self.generator = memory, program, generator
        self.name = program.name
        self.grid, self.block, self.ctas, self.params = grid, block, ctas, params
        self.report, self.schedule, self.eager = report, schedule, eager
        nthreads = block[0] * block[1] * block[2]
        self.nthreads = (nthreads + 31) // 32 * 32
        self.ncta = len(ctas)
        self.nlanes = self.nthreads * self.ncta
        self.lanes = np.arange(self.nlanes)
        self.cta_of = self.lanes // self.nthreads
        self.thread = self.lanes % self.nthreads
        self.warp_of = self.thread // 32
        self.lane_id = self.lanes % 32
        self.warp_base = self.lanes - self.lane_id
        self.live = self.thread < nthreads
        self.nlive = self.live.reshape(self.ncta, self.nthreads).sum(1)
        self.shared = Shared(self.ncta, shared_bytes, self.nthreads // 32, race, init)
        self.tracking = bool(race or init)
        self.shared_base = self.cta_of.astype(i8) * self.shared.stride
        self.local_stride = (program.local_size + 15) // 16 * 16
        words = max(1, self.nlanes * self.local_stride // 4)
        self.local = np.full(words, POISON32, u4).view(u1)
        self.local_views = {
            size: self.local[: self.local.nbytes // size * size].view(UNSIGNED[size * 8])
            for size in (1, 2, 4, 8)
        }
        self.groups, self.barriers = [], {}
        self.copies, self.copy_count = [], np.zeros(self.nlanes, i8)
        self.mbarriers, self.mbarrier_waiters = {}, []
        self.mbarrier_progress, self.mbarrier_spins = False, 0
        self.wgmma_open, self.wgmma_count = [], np.zeros(self.nlanes, i8)
        self.bulk_open, self.bulk_count = [], np.zeros(self.nlanes, i8)
        # The last array of lanes seen by whole_warps, active_mask and converge.
        self._whole = self._mask_of = self._converged = None
        self.registers = [
            np.full(self.nlanes, POISON[bits], REGISTER_TYPE[bits])
            for bits in program.register_bits
        ]
        self._set_special_registers(dynamic_bytes)

    def _set_special_registers(self, dynamic_bytes: int) -> None:
        cta = self.ctas[self.cta_of]
        lane = self.lane_id
        everyone = 0xFFFFFFFF
        values: dict[str, Any] = {
            **{"%laneid": lane, "%warpid": self.warp_of, "%nwarpid": self.nthreads // 32},
            **{"%smid": cta % 108, "%nsmid": 108, "%gridid": 1},
            **{"%clock": 0, "%clock64": 0, "%globaltimer": 0, "%clock_hi": 0},
            **{"%lanemask_eq": 1 << lane, "%lanemask_lt": (1 << lane) - 1},
            **{"%lanemask_le": (2 << lane) - 1, "%lanemask_gt": everyone & ~((2 << lane) - 1)},
            **{"%lanemask_ge": everyone & ~((1 << lane) - 1)},
            **{"%dynamic_smem_size": dynamic_bytes, "%total_smem_size": self.shared.size},
            **{"%cluster_ctarank": 0, "%cluster_nctarank": 1, "%is_explicit_cluster": 0},
        }
        thread, stride = self.thread, 1
        for axis, size, count in zip("xyz", self.block, self.grid, strict=True):
            values[f"%tid.{axis}"] = thread // stride % size if axis != "z" else thread // stride
            values[f"%ntid.{axis}"] = size
            values[f"%ctaid.{axis}"] = values[f"%clusterid.{axis}"] = cta % count
            values[f"%nctaid.{axis}"] = values[f"%nclusterid.{axis}"] = count
            values[f"%cluster_ctaid.{axis}"] = 0
            values[f"%cluster_nctaid.{axis}"] = 1
            stride *= size
            cta = cta // count
        for name, register in self.program.special.items():
            if name not in values:
                raise PTXError(f"special register {name} is not modelled")
            value = np.broadcast_to(np.asarray(values[name]), (self.nlanes,))
            self.registers[register.slot] = value.astype(REGISTER_TYPE[register.bits])

    def lanes_of(self, active: np.ndarray | None) -> np.ndarray:
        """The active lanes, given None for all."""
        return self.lanes if active is None else active

    def text(self, pc: int) -> str:
        """The instruction at ``pc``, with its line in the PTX text."""
        if pc < 0 or pc >= len(self.program.instructions):
            return "?"
        instruction = self.program.instructions[pc]
        return f"line {instruction.line}: {instruction.text}"

    def cta_name(self, cta: int) -> tuple[int, int, int]:
        """The block index of a CTA of this batch."""
        linear = int(self.ctas[cta])
        x, y, _ = self.grid
        return (linear % x, linear // x % y, linear // (x * y))

    def thread_name(self, lane: int) -> str:
        """A lane as "block (..) thread (..)"."""
        thread = int(self.thread[lane])
        x, y, _ = self.block
        index = (thread % x, thread // x % y, thread // (x * y))
        return f"block {self.cta_name(int(self.cta_of[lane]))} thread {index}"

    def fault(
        self,
        error: type[EmuError],
        pc: int,
        active: np.ndarray | None,
        bad: np.ndarray,
        addresses: np.ndarray,
        what: str,
    ) -> NoReturn:
        """Raise ``error`` for the first of the bad accesses."""
        first = int(np.flatnonzero(bad)[0])
        lane = first if active is None else int(active[first])
        raise error(
            f"kernel {self.name}: {what} at address {int(addresses[first]):#x} in "
            f"{self.thread_name(lane)} ({int(np.count_nonzero(bad))} threads of this batch); "
            f"{self.text(pc)}"
        )

    def unsupported(self, pc: int, why: str) -> NoReturn:
        """Raise UnsupportedError for the instruction at ``pc``."""
        raise UnsupportedError(
            f"{self.name}: unsupported instruction ({why}); {self.text(pc)}",
        )

    def external_call(self, pc: int, active: np.ndarray | None, name: str) -> None:
        """A call of a function without a body: printf is dropped, any other is a failed assertion.

        Raises DeviceTrapError for those.
        """
        if name == "vprintf":
            return
        lane = 0 if active is None else int(active[0])
        raise DeviceTrapError(
            f"{self.name}: call of external {name} in {self.thread_name(lane)}; {self.text(pc)}"
        )
