"""wgmma: carried out at its wait."""

from typing import Any

import numpy as np

from . import warp
from .errors import DivergedError, EmuError
from .numerics import f2, f4, i4, i8, u4
from .tensor_map import swizzle

Lanes = np.ndarray | None


class WarpGroups:
    """wgmma: carried out at its wait."""

    def whole_groups(self, pc: int, active: Lanes) -> None:
        """Raise DivergedError unless whole warpgroups are active."""
        if active is None:
            if self.nthreads % 128:
                raise EmuError(
                    f"{self.name}: wgmma in a block of {self.nthreads} threads; {self.text(pc)}"
                )
            return
        if active.size % 128 == 0:
            x = active.reshape(-1, 128)
            if ((x[:, 127] - x[:, 0] == 127) & (self.thread[x[:, 0]] % 128 == 0)).all():
                return
        g = self.cta_of[active] * 64 + self.thread[active] // 128
        n = np.bincount(g, minlength=self.ncta * 64)
        raise DivergedError(pc, active[n[g] != 128])

    def wgmma(self, pc: int, active: Lanes, spec: dict[str, Any]) -> None:
        """wgmma.mma_async; ``spec`` is built by the code generator.

        Values of operands are captured at issue, memory is read at the wait.
        """
        base = self.lanes_of(active)
        if self.eager:
            self.wgmma_run(base, spec, pc)
        else:
            self.wgmma_open.append([base, None, spec, pc])

    def wgmma_commit(self, active: Lanes) -> None:
        """wgmma.commit_group."""
        base = self.lanes_of(active)
        if active is None:
            for record in self.wgmma_open:
                if record[1] is None:
                    record[1] = self.wgmma_count[record[0]].copy()
        else:
            act = self.active_mask(active)
            out = []
            for record in self.wgmma_open:
                if record[1] is None:
                    m = act[record[0]]
                    if m.all():
                        record[1] = self.wgmma_count[record[0]].copy()
                    elif m.any():
                        out += [
                            self.wgmma_part(record, m, self.wgmma_count[record[0][m]].copy()),
                            self.wgmma_part(record, ~m, None),
                        ]
                        continue
                out.append(record)
            self.wgmma_open = out
        self.wgmma_count[base] += 1

    @staticmethod
    def wgmma_part(record: list[Any], m: Any, group: Any) -> list[Any]:
        """The part of a pending wgmma that belongs to some of its lanes."""
        s = dict(record[2])
        for k in ("a_descriptor", "b_descriptor", "accumulate"):
            if isinstance(s.get(k), np.ndarray) and s[k].ndim:
                s[k] = s[k][m]
        return [record[0][m], group, s, record[3]]

    def wgmma_wait(self, active: Lanes, keep: int) -> None:
        """wgmma.wait_group: carry out all but the last ``keep`` groups."""
        act = None if active is None else self.active_mask(active)
        left = []
        for record in self.wgmma_open:
            base, group, spec, pc = record
            if group is None:
                left.append(record)
                continue
            done = group < self.wgmma_count[base] - keep
            if act is not None:
                done &= act[base]
            if done.all():
                self.wgmma_run(base, spec, pc)
            elif done.any():
                d = self.wgmma_part(record, done, None)
                self.wgmma_run(d[0], d[2], pc)
                left.append(self.wgmma_part(record, ~done, group[~done]))
            else:
                left.append(record)
        self.wgmma_open = left

    def descriptor_tile(
        self,
        pc: int,
        lanes: np.ndarray,
        desc: np.ndarray,
        rows: int,
        K: int,
        size: Any,
        trans: int,
        is_a: bool = False,
    ) -> np.ndarray:
        """Elements (G, rows, K) of the operand a descriptor names; rows is M or N."""
        d = desc.astype(np.uint64).view(i8)[:, None, None]
        start = (d & 0x3FFF) << 4
        lbo = ((d >> 16) & 0x3FFF) << 4
        sbo = ((d >> 32) & 0x3FFF) << 4
        mode = (desc.astype(np.uint64) >> np.uint64(62)).astype(int)
        if len(set(mode.tolist())) != 1:
            raise EmuError("mixed swizzle modes")
        if (((d >> 49) & 7) != 0).any():
            raise EmuError(f"{self.name}: descriptor base offset is not modelled; {self.text(pc)}")
        bits = {0: 0, 1: 3, 2: 2, 3: 1}[int(mode[0])]
        r = np.arange(rows, dtype=i8)[None, :, None]
        k = np.arange(K, dtype=i8)[None, None, :]
        t = 16 // size  # elements per 16 bytes
        if not trans:  # K-major
            if bits == 0:
                a = start + (r // 8) * sbo + (r % 8) * 16 + (k // t) * lbo + (k % t) * size
            else:
                a = start + (r // 8) * sbo + (r % 8) * (16 << bits) + k * size
        else:  # MN-major
            if bits == 0:
                a = start + (r // t) * sbo + (r % t) * size + (k // 8) * lbo + (k % 8) * 16
            else:
                span = t << bits
                a = (
                    start
                    + (r // span) * lbo
                    + (r % span) * size
                    + (k // 8) * sbo
                    + (k % 8) * (16 << bits)
                )
        if bits:
            a = swizzle(a, bits)
        G = a.shape[0]
        tracking, self.tracking = self.tracking, False
        active = np.repeat(lanes, rows * K)
        indices = self.shared_index(pc, active, a.reshape(-1), size, False)
        self.tracking = tracking
        if tracking:  # every warp reads all of B, and its own 16 rows of A
            g3 = np.broadcast_to(indices.reshape(G, rows, K), (G, rows, K))
            for w in range(4):
                x = (g3[:, 16 * w : 16 * w + 16] if is_a else g3).reshape(-1)
                n = x.size // G
                self.shared.async_read(
                    self,
                    pc,
                    x,
                    size,
                    np.repeat(self.cta_of[lanes], n),
                    np.repeat(self.warp_of[lanes] + w, n),
                )
        return self.shared.views[size][indices // size].reshape(G, rows, K)

    def wgmma_run(self, base: np.ndarray, s: Any, pc: int) -> None:
        """Carry out one wgmma."""
        G = base.size // 128
        lead = base[::128]
        N, K, a_type, b_type, d_type = s["N"], s["K"], s["a_type"], s["b_type"], s["d_type"]
        size = {"f16": 2, "bf16": 2, "tf32": 4}.get(a_type, 1)

        def first(x: Any) -> np.ndarray:
            return np.broadcast_to(np.asarray(x), base.shape)[::128]

        if s["a_registers"] is not None:
            A = warp.frag_a(
                [self.registers[k][base] for k in s["a_registers"]], a_type, 16
            ).reshape(G, 64, K)
        else:
            descriptor, transposed = first(s["a_descriptor"]), s["a_transposed"]
            bits = self.descriptor_tile(pc, lead, descriptor, 64, K, size, transposed, True)
            A = warp.decode(bits, a_type)
        descriptor, transposed = first(s["b_descriptor"]), s["b_transposed"]
        bits = self.descriptor_tile(pc, lead, descriptor, N, K, size, transposed)
        B = warp.decode(bits, b_type)
        if s["a_sign"] == -1:
            A = -A
        if s["b_sign"] == -1:
            B = -B
        P = np.matmul(A, B.transpose(0, 2, 1))
        regs = s["d_registers"]
        f16d = d_type == "f16"
        old = np.stack([self.registers[k][base] for k in regs])
        if f16d:
            o = (
                old[..., None]
                .view(f2)
                .astype(f4)
                .reshape(N // 8, 2, G, 4, 8, 4, 2)
                .transpose(2, 3, 1, 4, 0, 5, 6)
            )
        else:
            o = (
                (old.view(f4) if d_type == "f32" else old.view(i4))
                .reshape(N // 8, 2, 2, G, 4, 8, 4)
                .transpose(3, 4, 1, 5, 0, 6, 2)
            )
        o = o.reshape(G, 64, N)
        sd = first(s["accumulate"]).astype(bool)[:, None, None]
        D = (
            P.astype(o.dtype) + np.where(sd, o, o.dtype.type(0))
            if not sd.all()
            else P.astype(o.dtype) + o
        )
        x = D.reshape(G, 4, 2, 8, N // 8, 4, 2)
        if f16d:
            y = (
                np.ascontiguousarray(x.astype(f2).transpose(4, 2, 0, 1, 3, 5, 6))
                .view(u4)
                .reshape(len(regs), -1)
            )
        else:
            y = (
                np.ascontiguousarray(x.transpose(4, 2, 6, 0, 1, 3, 5))
                .view(u4)
                .reshape(len(regs), -1)
            )
        full = base.size == self.nlanes
        for k, v in zip(regs, y, strict=True):
            if full:
                self.registers[k] = v.copy()
            else:
                self.registers[k][base] = v
