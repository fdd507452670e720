"""Loads, stores and atomics."""

from ..errors import UnsupportedError
from ..syntax import BITS
from .base import NUMPY_NAME, SPACES, Emitter

ATOMICS = ("add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec")


class Accesses(Emitter):
    """Loads, stores and atomics."""

    def _space(self) -> str | None:
        """The address space the opcode names; None is a generic address."""
        space = next((part for part in self.parts[1:] if part in SPACES), None)
        return space and space.split("::")[0]

    def op_ld(self) -> list[str]:
        sizes = (int(part[1]) for part in self.parts[1:] if part in ("v2", "v4", "v8"))
        dtype = self.parts[-1]
        d, source = self.args[:2]
        space, a, offset = self.address(source, self._space())
        where = (repr(space), a, offset, BITS[dtype] // 8, next(sizes, 1))
        lines = [f"v = {self.batch_call('load', *where)}"]
        self.vector = True
        # Registers keep bits: only integers are extended when the register is wider.
        kept = f"b{BITS[dtype]}" if dtype in ("f16", "bf16", "f32", "f64", "tf32") else dtype
        for i, item in enumerate(self.items(d)):
            loaded = f"v[{i}].view({NUMPY_NAME[kept]})" if kept[0] == "s" else f"v[{i}]"
            lines += self.assign(item, loaded, kept)
        return lines

    op_ldu = op_ld

    def op_st(self) -> list[str]:
        target, source = self.args[:2]
        space, a, offset = self.address(target, self._space())
        bits = BITS[self.parts[-1]]
        values = f"[{self.operands(self.items(source), f'b{bits}')}]"
        return [self.batch_call("store", repr(space), a, offset, bits // 8, values)]

    def op_prefetch(self) -> list[str]:
        return []

    op_prefetchu = op_applypriority = op_discard = op_prefetch

    def op_createpolicy(self) -> list[str]:
        return self.assign(self.args[0], "T_u8(0)", "b64")

    def _atomic(self, returns: bool) -> list[str]:
        op = next(part for part in self.parts[1:] if part in ATOMICS)
        dtype = self.parts[-1]
        bits = f"b{BITS[dtype]}"
        d, target, b, *more = self.args if returns else [None, *self.args]
        space, a, offset = self.address(target, self._space())
        lines = []
        # A vector of values has as many destinations, or none (red).
        for i, (x, y) in enumerate(zip(self.items(d), self.items(b), strict=False)):
            wanted = returns and x is not None
            other = self.operand(more[0], bits) if op == "cas" else "None"
            where = (repr(space), a, offset + i * BITS[dtype] // 8)
            what = (repr(op), repr(dtype), self.operand(y, bits), other, wanted)
            call = self.batch_call("atomic", *where, *what)
            if wanted:
                self.vector = True
                lines += [f"t = {call}", *self.assign(x, "t", bits)]
            else:
                lines.append(call)
        return lines

    def op_atom(self) -> list[str]:
        return self._atomic(True)

    def op_red(self) -> list[str]:
        if "async" in self.parts:
            raise UnsupportedError(self.opcode)
        return self._atomic(False)
