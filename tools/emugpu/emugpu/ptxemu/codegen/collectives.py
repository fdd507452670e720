"""Barriers, fences and the exchange within a warp."""

from typing import Any

from ..syntax import Pair
from .base import Emitter

EVERY_LANE = "0xffffffff"


class Collectives(Emitter):
    """Barriers, fences and the exchange within a warp, which work on the registers of all lanes."""

    def op_bar(self) -> list[str]:
        parts = [part for part in self.parts if part not in ("cta", "aligned")]
        if parts[1] == "warp":
            mask = self.full_operand(self.args[0], "u32")
            return [self.batch_call("converge", mask), f"return {self.pc + 1}"]
        if parts[0] == "barrier" and parts[1] == "cluster":
            if "wait" not in parts:
                return [f"return {self.pc + 1}"]
            return [f"return {self.batch_call('barrier', 15, None, True)}"]
        if parts[1] == "red":
            d, number, *count, predicate = self.args
            count = self.operand(count[0], "u32") if count else "None"
            what = (repr(parts[2]), self.operand(predicate, "pred"), d.slot)
            call = self.batch_call("barrier_reduce", self.operand(number, "u32"), count, *what)
            return [f"return {call}"]
        number = self.operand(self.args[0], "u32") if self.args else "0"
        count = self.operand(self.args[1], "u32") if len(self.args) > 1 else "None"
        return [f"return {self.batch_call('barrier', number, count, parts[1] != 'arrive')}"]

    op_barrier = op_bar

    def op_membar(self) -> list[str]:
        return []

    # Nothing to do where everything happens at once.
    op_griddepcontrol = op_nanosleep = op_setmaxnreg = op_pmevent = op_membar

    def op_fence(self) -> list[str]:
        if "proxy" in self.parts and any(part.startswith("async") for part in self.parts):
            return [f"batch.proxy_fence({self.lanes})"]
        return []

    def op_extcall(self) -> list[str]:
        return [self.batch_call("external_call", repr(self.parts[1]))]

    def _member_mask(self, position: int) -> str:
        if len(self.args) > position:
            return self.full_operand(self.args[position], "u32")
        return EVERY_LANE

    def _assign_pair(self, d: Any, dtype: str) -> list[str]:
        """t to the destination, u to the predicate beside it if there is one."""
        if isinstance(d, Pair):
            return self.assign_full(d.a, "t", dtype) + self.assign_full(d.b, "u", "pred")
        return self.assign_full(d, "t", dtype)

    def op_shfl(self) -> list[str]:
        d, a, *bc = self.args[:4]
        values = [self.full_operand(a, "b32"), *(self.full_operand(op, "u32") for op in bc)]
        call = self.batch_call("shuffle", repr(self.parts[2]), *values, self._member_mask(4))
        return [f"t, u = {call}", *self._assign_pair(d, "b32")]

    def op_vote(self) -> list[str]:
        mode = self.parts[2] if self.parts[1] == "sync" else self.parts[1]
        d, a = self.args[:2]
        votes = self.full_operand(a, "pred")
        call = self.batch_call("vote", repr(mode), votes, self._member_mask(2))
        return [f"t = {call}", *self.assign_full(d, "t", "b32" if mode == "ballot" else "pred")]

    def op_activemask(self) -> list[str]:
        return [f"t = batch.activemask({self.lanes})", *self.assign_full(self.args[0], "t", "b32")]

    def op_redux(self) -> list[str]:
        op, dtype = self.parts[2], self.parts[-1]
        values = self.full_operand(self.args[1], dtype)
        call = self.batch_call("redux", repr(op), values, self._member_mask(2))
        return [f"t = {call}", *self.assign_full(self.args[0], "t", dtype)]

    def op_match(self) -> list[str]:
        values = self.full_operand(self.args[1], self.parts[-1])
        call = self.batch_call("match", repr(self.parts[1]), values, self._member_mask(2))
        return [f"t, u = {call}", *self._assign_pair(self.args[0], "b32")]

    def op_elect(self) -> list[str]:
        d = self.args[0]
        leader, elected = (d.a, d.b) if isinstance(d, Pair) else (None, d)
        lines = [f"t, u = {self.batch_call('elect', self._member_mask(1))}"]
        return lines + self.assign_full(leader, "t", "b32") + self.assign_full(elected, "u", "pred")
