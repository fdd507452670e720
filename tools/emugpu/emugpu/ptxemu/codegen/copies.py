"""Asynchronous copies and the mbarriers that track them."""

from typing import Any

from emugpu.ptxemu.codegen.base import Emitter
from emugpu.ptxemu.errors import UnsupportedError
from emugpu.ptxemu.memory import PARAM_WINDOW
from emugpu.ptxemu.syntax import Address, Register, Symbol


class Copies(Emitter):
    """Asynchronous copies and the mbarriers that track them."""

    def op_cp(self) -> list[str]:
        kind = self.parts[2]
        if self.parts[1] == "reduce" or kind == "bulk":
            return self._bulk()
        if kind == "commit_group":
            return [f"batch.copy_commit({self.lanes})"]
        if kind == "wait_group":
            return [f"batch.copy_wait({self.lanes}, {self.args[0].value})"]
        if kind == "wait_all":
            return [f"batch.copy_commit({self.lanes})", f"batch.copy_wait({self.lanes}, 0)"]
        if kind == "mbarrier":
            barrier = self.args[0]
            a = self.operand(barrier.base, f"b{barrier.base.bits}")
            noinc = "noinc" in self.parts
            return [self.batch_call("copy_mbarrier_arrive", a, barrier.offset, noinc)]
        target, source, nbytes, *rest = self.args
        nbytes = nbytes.value
        if "L2::cache_hint" in self.opcode:
            rest = rest[:-1]
        size = "None"
        if rest and not (isinstance(rest[0], Register) and rest[0].bits == 64):
            if isinstance(rest[0], Register) and rest[0].bits == 1:  # ignore-src predicate
                size = f"np.where({self.operand(rest[0], 'pred')}, 0, {nbytes})"
            else:
                size = self.operand(rest[0], "u32")
        to, source = self._pair(target, "shared"), self._pair(source, "global")
        return [self.batch_call("copy_async", to, source, nbytes, size)]

    def _pair(self, op: Any, space: str) -> str:
        """Two arguments: the address in registers and the constant offset."""
        _, a, offset = self.address(op, space)
        return f"{a}, {offset}"

    def _generic_pair(self, op: Any, space: str) -> str:
        """The same for operands that may be registers or parameters."""
        if not isinstance(op, Address):
            return f"{self.operand(op, f'b{op.bits}')}, 0"
        actual_space, a, offset = self.address(op, space)
        if isinstance(op.base, Symbol) and actual_space == "param":
            offset += PARAM_WINDOW
        return f"{a}, {offset}"

    def _bulk(self) -> list[str]:
        parts, args = self.parts, self.args
        if "commit_group" in parts:
            return [f"batch.bulk_commit({self.lanes})"]
        if "wait_group" in parts:
            return [f"batch.bulk_wait({self.lanes}, {args[0].value})"]
        if "prefetch" in parts:
            return []
        op = None
        if "reduce" in parts:
            op = next((part for part in parts if part in ("add", "min", "max")), None)
        store = "bulk_group" in parts
        if parts[parts.index("bulk") + 1] == "tensor":
            if any(part.startswith(("im2col", "tile::gather", "tile::scatter")) for part in parts):
                raise UnsupportedError(self.opcode)
            tensor = args[0] if store else args[1]
            coords = f"[{self.operands(tensor.coords[0].items, 's32')}]"
            tensor_map = self._generic_pair(tensor, "global")
            if store:
                source = self._generic_pair(args[1], "shared")
                return [self.batch_call("tma_store", tensor_map, coords, source, repr(op))]
            to, barrier = (self._generic_pair(arg, "shared") for arg in (args[0], args[2]))
            return [self.batch_call("tma_load", to, tensor_map, coords, barrier)]
        if op is not None and (not store or parts[-1] != "f32"):
            raise UnsupportedError(self.opcode)
        spaces = ("global", "shared") if store else ("shared", "global")
        to, source = map(self._generic_pair, args[:2], spaces)
        size = self.operand(args[2], "u32")
        if store:
            return [self.batch_call("bulk_store", to, source, size, repr(op))]
        barrier = self._generic_pair(args[3], "shared")
        return [self.batch_call("bulk_load", to, source, size, barrier)]

    def op_mbarrier(self) -> list[str]:
        kind, args = self.parts[1], self.args
        if kind == "init":
            count = self.operand(args[1], "u32")
            return [self.batch_call("mbarrier_init", self._pair(args[0], "shared"), count)]
        if kind == "inval":
            return [self.batch_call("mbarrier_inval", self._pair(args[0], "shared"))]
        if kind in ("expect_tx", "complete_tx"):
            sign = "" if kind == "expect_tx" else "-"
            pending = f"{sign}np.asarray({self.operand(args[1], 'u32')}).astype(T_i8)"
            barrier = self._pair(args[0], "shared")
            return [self.batch_call("mbarrier_arrive", barrier, 0, pending, False)]
        if kind in ("arrive", "arrive_drop"):
            d, barrier, *more = [None, *args] if isinstance(args[0], Address) else args
            count, pending = "1", "0"
            if "expect_tx" in self.parts:
                pending = self.operand(more[0], "u32")
            elif more:
                count = self.operand(more[0], "u32")
            where = self._pair(barrier, "shared")
            call = self.batch_call("mbarrier_arrive", where, count, pending)
            self.vector = True
            return [f"t = {call}", *self.assign(d, "t", "b64")]
        if kind in ("try_wait", "test_wait"):
            parity = "parity" in self.parts
            phase = self.operand(args[2], "u32" if parity else "b64")
            barrier = self._pair(args[1], "shared")
            call = self.batch_call("mbarrier_wait", barrier, phase, parity, args[0].slot)
            return [f"return {call}"]
        raise UnsupportedError(self.opcode)

    def op_tensormap(self) -> list[str]:
        parts, args = self.parts, self.args
        if parts[1] == "cp_fenceproxy":
            to, source = self._pair(args[0], "global"), self._pair(args[1], "shared")
            return [self.batch_call("tensor_map_copy", to, source)]
        in_shared = any(part.startswith("shared") for part in parts)
        where = self._pair(args[0], "shared" if in_shared else "global")
        field = parts[3 if parts[2] == "tile" else 2]
        ordinal = args[1].value if len(args) == 3 else 0
        value = self.operand(args[-1], parts[-1])
        return [self.batch_call("tensor_map_replace", where, repr(field), ordinal, value)]
