"""Launches: from the raw call into the stand-in CUDA libraries to a run of the PTX emulator on device memory."""

import bisect
import collections
import ctypes
import functools
import hashlib
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from . import ptxemu
from .build import build
from .ptxemu import machine as _machine, memory as M

OP_LAUNCH, OP_LOAD_DATA, OP_LOAD_FILE, OP_STATIC_SMEM, OP_UNSUPPORTED = 1, 2, 3, 4, 5
ERR_LAUNCH = 719


class EmulatedGPUError(RuntimeError):
    """The emulated GPU cannot do what was asked."""


class NotEmulated(EmulatedGPUError):
    """A kernel without PTX was launched (torch's own, cuBLAS, ...)."""


class LaunchError(EmulatedGPUError):
    """A launch that a real device would refuse."""


class _Launch(ctypes.Structure):
    _fields_ = [
        ("kernel", ctypes.c_uint64),
        ("name", ctypes.c_char_p),
        ("image", ctypes.c_void_p),
        ("module", ctypes.c_uint64),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("cluster", ctypes.c_uint * 3),
        ("smem_max", ctypes.c_int),
        ("smem", ctypes.c_uint64),
        ("stream", ctypes.c_void_p),
        ("args", ctypes.POINTER(ctypes.c_void_p)),
        ("extra", ctypes.POINTER(ctypes.c_void_p)),
        ("cooperative", ctypes.c_int),
        ("device", ctypes.c_int),
    ]


class _Kernel(ctypes.Structure):
    _fields_ = [
        ("host", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("image", ctypes.c_void_p),
        ("module", ctypes.c_uint64),
        ("smem_max", ctypes.c_int),
    ]


class _DlInfo(ctypes.Structure):
    _fields_ = [
        ("fname", ctypes.c_char_p),
        ("fbase", ctypes.c_void_p),
        ("sname", ctypes.c_char_p),
        ("saddr", ctypes.c_void_p),
    ]


_CB = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_long)
BLOCK = np.dtype(
    [("base", "<u8"), ("size", "<u8"), ("serial", "<u8"), ("freed", "<u8"), ("device", "<u8")]
)

core = cudart = None  # the loaded libraries
memory = None  # DeviceMemory
launches = collections.deque(maxlen=10000)
# the first six go to ptxemu's launch; eager_wgmma None: only for Triton kernels with f16 accumulators.
# view_bounds: a Triton kernel or custom operator may touch only the bytes spanned by the tensors passed, not the rest of their storages.
options = dict(
    racecheck=None,
    initcheck=None,
    schedule="lockstep",
    max_lanes=4096,
    max_issues=None,
    eager_wgmma=None,
    view_bounds=True,
)
views = threading.local()  # .extents: [(address, bytes)] of the tensors of the launch under way
hooks = []  # called as hook(record) after each launch
_pending = []
_lock = threading.RLock()


def raw(addr, n):
    a = (
        np.frombuffer((ctypes.c_uint8 * n).from_address(addr), np.uint8)
        if n
        else np.empty(0, np.uint8)
    )
    if n:
        a.flags.writeable = True
    return a


# -- device memory as the emulator sees it ---------------------------------------------------------
class DeviceMemory(M.GlobalMemory):
    """Every live cudaMalloc block at its own address: pointers need no translation, also inside structs and device memory."""

    def __init__(self):
        super().__init__()
        self.gen, self.seen, self.table = -1, {}, np.empty(0, BLOCK)
        self.device, self.lists = 0, {}
        self._b = self._e = None

    def refresh(self, device=0):
        """Look at the memory of one device."""
        g = core.emuGeneration()
        if g == self.gen and device in self.lists:
            self.bases, self.bufs, self._b, self._e = self.lists[device]
            return
        if g != self.gen:
            self.lists = {}
        n = core.emuBlocks(None, 0)
        t = np.empty(n, BLOCK)
        core.emuBlocks(t.ctypes.data_as(ctypes.c_void_p), n)
        self.table, self.gen = t, g
        live = t[t["freed"] == 0]
        if len(self.seen) > 2 * len(live) + 64:
            keep = set(live["base"].tolist())
            self.seen = {k: v for k, v in self.seen.items() if k in keep}
        live = live[live["device"] == device]
        bases = live["base"].tolist()
        for base, size, serial in zip(bases, live["size"].tolist(), live["serial"].tolist()):
            if base not in self.seen:
                self.seen[base] = M.Buffer(base, raw(base, size), f"allocation {serial}", None)
        self.bases, self.bufs = bases, [self.seen[b] for b in bases]
        self._b = np.array(bases or [0], np.int64)
        self._e = np.array([b.end for b in self.bufs] or [0], np.int64)
        self.device = device
        self.lists[device] = self.bases, self.bufs, self._b, self._e

    def register(self, x, name=None):
        """Module variables: a block of device memory (the array passed in is only copied)."""
        n = int(x.nbytes)
        p = core.emuMalloc(max(n, 1))
        if not p:
            raise EmulatedGPUError("out of device memory")
        raw(p, n)[:] = x.view(np.uint8).reshape(-1)
        return p

    def release(self, bases):
        pass

    def restrict(self, extents):
        """Cut the blocks that hold `extents` down to them (merged); returns what to restore."""
        saved = self.bases, self.bufs, self._b, self._e
        groups = {}
        for p, n in extents:
            b = self.find(p)
            if n and b is not None and p < b.end:
                groups.setdefault(b.base, []).append((p, p + n))
        if groups:
            bufs = []
            for b in self.bufs:
                if b.base not in groups:
                    bufs.append(b)
                    continue
                runs = []
                for lo, hi in sorted(groups[b.base]):
                    if runs and lo <= runs[-1][1]:
                        runs[-1][1] = max(hi, runs[-1][1])
                    else:
                        runs.append([lo, hi])
                for lo, hi in runs:
                    part = (lo, hi) != (b.base, b.end)
                    bufs.append(
                        M.Buffer(
                            lo, raw(lo, hi - lo), b.name + (" [tensor view]" if part else ""), None
                        )
                        if part
                        else b
                    )
            self.bufs, self.bases = bufs, [b.base for b in bufs]
            self._b, self._e = (
                np.array(self.bases or [0], np.int64),
                np.array([b.end for b in bufs] or [0], np.int64),
            )
        return saved

    def restore(self, saved):
        self.bases, self.bufs, self._b, self._e = saved

    def nearest(self, addr):
        i = int(np.searchsorted(self.table["base"], addr, "right")) - 1
        if (
            i >= 0
            and self.table["freed"][i]
            and addr < self.table["base"][i] + max(1, self.table["size"][i])
        ):
            return f"allocation {self.table['serial'][i]} of {self.table['size'][i]} bytes, which has been freed"
        if (
            i >= 0
            and self.table["device"][i] != self.device
            and addr < self.table["base"][i] + self.table["size"][i]
        ):
            return f"allocation {self.table['serial'][i]} of device {self.table['device'][i]}, but the kernel runs on device {self.device}: missing device guard?"
        if not (1 << 44) <= addr < (2 << 44):
            return "not a device address" + (" (host memory?)" if addr >> 40 > 3 else "")
        return super().nearest(addr)

    def plan(self, a, nb):
        lo, hi = int(a.min()), int(a.max())
        b = self.find(lo)
        if b is not None and lo >= b.base and hi + nb <= b.end:
            return [(b, None, a - np.int64(b.base))], None
        bi = np.searchsorted(self._b, a, "right") - 1
        bad = (bi < 0) | (a + nb > self._e[np.maximum(bi, 0)])
        if bad.any() or not self.bufs:
            return None, bad if self.bufs else np.ones(a.shape, bool)
        return [
            (self.bufs[k], sel, a[sel] - np.int64(self.bufs[k].base))
            for k in np.unique(bi)
            for sel in [np.flatnonzero(bi == k)]
        ], None


# -- PTX -------------------------------------------------------------------------------------------
_modules = {}  # ('image', ptr) or ('module', id) -> [texts] or an explanation (str)
_emulated = {}  # (key of the above, kernel) -> Module
_cubins = {}  # sha of a cubin -> PTX text
_extra_ptx = []  # registered by hand
_parsed = {}  # sha of PTX -> Module


def register_ptx(text_or_path):
    """Make PTX known by hand: used for kernels whose fatbin holds no PTX."""
    t = str(text_or_path)
    if ".version" not in t:
        t = Path(t).read_text()
    _extra_ptx.append(t)
    _emulated.clear()


def register_cubin(cubin, ptx):
    _cubins[hashlib.sha256(cubin).hexdigest()] = ptx


def _cuobjdump():
    c = [os.environ.get("EMUGPU_CUOBJDUMP"), shutil.which("cuobjdump")]
    c += [os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin", "cuobjdump")]
    c += [os.path.join(p, "triton/backends/nvidia/bin/cuobjdump") for p in sys.path]
    for x in c:
        if x and os.path.exists(x):
            return x
    raise EmulatedGPUError("emugpu: cuobjdump not found (set EMUGPU_CUOBJDUMP)")


def library_of(addr):
    info = _DlInfo()
    f = ctypes.CDLL(None).dladdr
    f.argtypes = [ctypes.c_void_p, ctypes.POINTER(_DlInfo)]
    return info.fname.decode() if f(addr, ctypes.byref(info)) and info.fname else "?"


def _fatbin_ptx(p):
    """PTX texts in a fat binary at address p (header 0xBA55ED50, headerSize at 6, payload size at 8)."""
    magic, _, hs, size = struct.unpack("<IHHQ", ctypes.string_at(p, 16))
    if magic != 0xBA55ED50:
        raise EmulatedGPUError(f"not a fat binary at {p:#x}")
    blob = ctypes.string_at(p, hs + size)
    cache = (
        Path(tempfile.gettempdir())
        / f"emugpu-{os.getuid()}"
        / hashlib.sha256(blob).hexdigest()[:24]
    )
    if not cache.exists():
        tmp = Path(tempfile.mkdtemp(prefix="emugpu"))
        (tmp / "k.fatbin").write_bytes(blob)
        r = subprocess.run(
            [_cuobjdump(), "-xptx", "all", "k.fatbin"], cwd=tmp, capture_output=True, text=True
        )
        (tmp / "k.fatbin").unlink()
        if r.returncode and "does not contain" not in r.stderr + r.stdout:
            raise EmulatedGPUError(f"cuobjdump: {r.stderr}")
        cache.parent.mkdir(exist_ok=True)
        try:
            os.replace(tmp, cache)
        except OSError:
            shutil.rmtree(tmp)
    return [f.read_text() for f in sorted(cache.glob("*.ptx"))]


def _elf_size(p):
    (shoff,) = struct.unpack("<Q", ctypes.string_at(p + 40, 8))
    esz, n = struct.unpack("<HH", ctypes.string_at(p + 58, 4))
    (phoff,) = struct.unpack("<Q", ctypes.string_at(p + 32, 8))
    pesz, pn = struct.unpack("<HH", ctypes.string_at(p + 54, 4))
    end = max(shoff + esz * n, phoff + pesz * pn)
    for i in range(n):
        (ty,) = struct.unpack("<I", ctypes.string_at(p + shoff + i * esz + 4, 4))
        off, size = struct.unpack("<QQ", ctypes.string_at(p + shoff + i * esz + 24, 16))
        if ty != 8:
            end = max(end, off + size)
    return end


def _image_texts(p):
    head = ctypes.string_at(p, 4)
    if head == struct.pack("<I", 0x466243B1):  # the wrapper that __cudaRegisterFatBinary gets
        return _fatbin_ptx(struct.unpack("<Q", ctypes.string_at(p + 8, 8))[0])
    if head == struct.pack("<I", 0xBA55ED50):
        return _fatbin_ptx(p)
    if head == b"\x7fELF":
        n = _elf_size(p)
        for pad in range(0, 9):  # Triton passes the file, whose end may be padded
            t = _cubins.get(hashlib.sha256(ctypes.string_at(p, n + pad)).hexdigest())
            if t:
                return [t]
        return "a cubin whose PTX is not registered (emugpu.register_cubin)"
    return [ctypes.string_at(p).decode()]


def _arch(text):
    i = text.index(".target") + 7
    t = text[i : i + 40].split()[0].split(",")[0]
    digits = "".join(c for c in t if c.isdigit())
    return int(digits), t.endswith(("a", "f")) and not t[-2:].isdigit()


def _pick(texts, kernel):
    cc = core_cc()
    best = None
    for t in texts:
        if kernel not in t:
            continue
        a, special = _arch(t)
        if a > cc or (special and a != cc):
            continue
        if best is None or (a, special) > best[0]:
            best = ((a, special), t)
    return best and best[1]


def module_for(image, module, kernel):
    key = ("image", image) if image else ("module", module)
    if (key, kernel) in _emulated:
        return _emulated[key, kernel]
    if key not in _modules:
        _modules[key] = _image_texts(image) if image else "an unknown module"
    texts = _modules[key]
    why = (
        texts
        if isinstance(texts, str)
        else f"{len(texts)} PTX images, none for sm_{core_cc()} with this kernel"
    )
    text = _pick(texts, kernel) if not isinstance(texts, str) else None
    if text is None:
        text = _pick(_extra_ptx, kernel)
    if text is None:
        lib = library_of(image) if image else "?"
        if "libtorch" in lib or "/nvidia/" in lib:
            raise NotEmulated(
                f"torch kernel {demangle(kernel)} launched on the emulated GPU (from {os.path.basename(lib)}): "
                f"the operator above it is not redirected to the CPU"
            )
        raise NotEmulated(
            f"no PTX for kernel {demangle(kernel)} of {lib}: {why}. Build with -gencode=arch=compute_{core_cc()},code=compute_{core_cc()} "
            f"(beside or instead of sm_) or call emugpu.register_ptx"
        )
    sha = (hashlib.sha256(text.encode()).hexdigest(), image)
    m = _parsed.get(sha)
    if m is None:
        m = _parsed[sha] = _load(text, image)
    _emulated[key, kernel] = m
    return m


def _load(text, image):
    """Parse; module variables live in device memory, where cudaMemcpyToSymbol also finds them."""
    old, _machine.M.GlobalMemory = _machine.M.GlobalMemory, lambda: memory
    try:
        m = ptxemu.Module.from_ptx(text)
    finally:
        _machine.M.GlobalMemory = old
    m.eager = "wgmma.mma_async" in text and ".f16.f16.f16" in text
    for v in m.parsed.vars.values():
        if v.name in m.gaddr:
            p = cudart.emuSymbol(image, v.name.encode(), v.size) if image else None
            if p:
                core.emuFree(m.gaddr[v.name])
            else:
                p = m.gaddr[v.name]
            st = raw(p, max(v.size, 1))
            st[:] = m.globals[v.name]
            m.globals[v.name], m.gaddr[v.name] = st, p
    for v in m.parsed.vars.values():
        for off, sym, es in v.relocs or []:
            nm = sym.replace("generic(", "").rstrip(")")
            base, _, add = nm.partition("+")
            if base in m.gaddr:
                val = m.gaddr[base] + (int(add) if add else 0)
                m.globals[v.name][off : off + es] = np.frombuffer(
                    val.to_bytes(8, "little")[:es], np.uint8
                )
    return m


@functools.lru_cache(None)
def demangle(s):
    try:
        return subprocess.run(["c++filt", s], capture_output=True, text=True).stdout.strip() or s
    except OSError:
        return s


def core_cc():
    return _cc


# -- the callback ----------------------------------------------------------------------------------
def _fail(e):
    _pending.append(e)
    core.emuSetError(ERR_LAUNCH, f"{type(e).__name__}: {e}".encode()[:4000])
    return ERR_LAUNCH


def pending():
    if _pending:
        return _pending[0]
    return LaunchError(core.emuMessage().decode()) if core.emuError() else None


def clear():
    """Forget a failed launch (a real device would stay broken)."""
    e = pending()
    _pending.clear()
    core.emuClearError()
    return e


def check():
    """Raise the exception of a failed launch, if there is one."""
    e = clear()
    if e is not None:
        raise e


def _callback(op, rec, arg):
    try:
        with _lock:
            if op == OP_LAUNCH:
                _launch(ctypes.cast(rec, ctypes.POINTER(_Launch)).contents)
            elif op == OP_LOAD_DATA:
                if arg == -1:  # a symbol of this fat binary is about to be used
                    for t in _image_texts(rec):
                        if _arch(t)[0] <= core_cc():
                            names = ptxemu.parser.Parsed(t)
                            ks = [f.name for f in names.funcs.values() if f.is_entry]
                            if ks:
                                module_for(rec, 0, ks[0])
                else:
                    _modules["module", arg] = _image_texts(rec)
            elif op == OP_LOAD_FILE:
                f = Path(ctypes.string_at(rec).decode())
                p = f.with_suffix(".ptx")
                if f.suffix == ".ptx" or p.exists():
                    _modules["module", arg] = [p.read_text()]
                else:
                    b = f.read_bytes()
                    t = _cubins.get(hashlib.sha256(b).hexdigest())
                    _modules["module", arg] = [t] if t else f"{f}, a cubin without PTX beside it"
            elif op == OP_STATIC_SMEM:
                k = ctypes.cast(rec, ctypes.POINTER(_Kernel)).contents
                return int(
                    module_for(k.image, k.module, k.name.decode())
                    .program(k.name.decode())[0]
                    .shared_static
                )
            elif op == OP_UNSUPPORTED:
                raise NotEmulated(
                    f"{ctypes.string_at(rec).decode()} is not available on the emulated GPU"
                )
        return 0
    except NotEmulated as e:
        if op == OP_STATIC_SMEM:  # asked about, not launched
            return 0
        return _fail(e)
    except BaseException as e:
        return _fail(e)


def _launch(r):
    name = r.name.decode()
    grid, block, cluster = tuple(r.grid), tuple(r.block), tuple(r.cluster)
    short = name if not name.startswith("_Z") else demangle(name)
    if (
        0 in grid
        or 0 in block
        or grid[1] > 65535
        or grid[2] > 65535
        or block[0] * block[1] * block[2] > 1024
        or block[2] > 64
    ):
        raise LaunchError(f"{short}: invalid configuration, grid {grid}, block {block}")
    if r.extra:
        raise LaunchError(f"{short}: launch with CU_LAUNCH_PARAM_BUFFER is not modelled")
    m = module_for(r.image, r.module, name)
    prog, _ = m.program(name)
    if cluster != (1, 1, 1):
        raise NotEmulated(
            f"{short}: thread-block clusters {cluster} are not modelled by the emulator"
        )
    limit = max(r.smem_max, 49152 - prog.shared_static)
    if r.smem > limit:
        raise LaunchError(
            f"{short}: {r.smem} bytes of dynamic shared memory, but {limit} allowed (cudaFuncAttributeMaxDynamicSharedMemorySize not raised)"
        )
    if r.smem + prog.shared_static > core.emu_smem_optin():
        raise LaunchError(
            f"{short}: {r.smem} + {prog.shared_static} bytes of shared memory exceed {core.emu_smem_optin()}"
        )
    args = [ctypes.string_at(r.args[i], size) for i, (_, _, size, _) in enumerate(prog.params)]
    memory.refresh(r.device)
    named = {}
    for i, ((nm, _, size, _), a) in enumerate(zip(prog.params, args)):
        b = memory.find(int.from_bytes(a, "little")) if size == 8 else None
        if b is not None and int.from_bytes(a, "little") < b.end:
            named.setdefault(b, b.name)
            b.name += f" (parameter {i})"
    opt = dict(options)
    bounds = opt.pop("view_bounds")
    if opt["eager_wgmma"] is None:
        opt["eager_wgmma"] = m.eager and not r.image
    extents = getattr(views, "extents", None)
    saved = memory.restrict(extents) if extents and bounds else None
    t0 = time.perf_counter()
    try:
        rep = m.launch(name, grid, block, args, int(r.smem), **opt)
    finally:
        if saved:
            memory.restore(saved)
        for b, n in named.items():
            b.name = n
    rec = dict(
        kernel=short,
        device=r.device,
        grid=grid,
        block=block,
        smem=int(r.smem),
        stream=r.stream or 0,
        report=rep,
        seconds=time.perf_counter() - t0,
    )
    launches.append(rec)
    for h in hooks:
        h(rec)


_cb = _CB(_callback)
_cc = 80


def load(cc=None, poison=True, capacity=None, devices=None):
    """Load the stand-in libraries into this process; must come before `import torch`."""
    global core, cudart, memory, _cc
    if core is not None:
        return
    env = (os.environ.get("EMULATED_GPU") or "80").split("x")  # '80' or '80x2': two devices
    _cc = int(cc or env[0])
    devices = devices or (int(env[1]) if len(env) > 1 else 1)
    libs = build()
    if (
        "torch" in sys.modules
        and "libcudart.so.13" in open("/proc/self/maps").read()
        and str(libs[1]) not in open("/proc/self/maps").read()
    ):
        raise EmulatedGPUError(
            'emugpu must be imported before torch (or run with LD_PRELOAD="'
            + " ".join(map(str, libs))
            + '")'
        )
    os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # one cudaMalloc per tensor
    os.environ.setdefault("TRITON_LIBCUDA_PATH", str(libs[0].parent))
    core, cudart, _ = (ctypes.CDLL(str(p), mode=ctypes.RTLD_GLOBAL) for p in libs)
    for lib, f, res, arg in (
        (core, "emuMalloc", ctypes.c_void_p, [ctypes.c_size_t]),
        (core, "emuFree", ctypes.c_int, [ctypes.c_void_p]),
        (core, "emuBlocks", ctypes.c_size_t, [ctypes.c_void_p, ctypes.c_size_t]),
        (core, "emuGeneration", ctypes.c_uint64, []),
        (core, "emuLiveBytes", ctypes.c_uint64, []),
        (core, "emuPeakBytes", ctypes.c_uint64, []),
        (core, "emuResetPeak", None, []),
        (core, "emuMessage", ctypes.c_char_p, []),
        (core, "emuSetError", None, [ctypes.c_int, ctypes.c_char_p]),
        (core, "emuSetCapacity", None, [ctypes.c_uint64]),
        (cudart, "emuSymbol", ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]),
    ):
        getattr(lib, f).restype, getattr(lib, f).argtypes = res, arg
    core.emuSetCC(_cc)
    core.emuSetDevices(devices)
    for f in filter(
        None, os.environ.get("EMUGPU_PTX", "").split(os.pathsep)
    ):  # .ptx files or folders of them
        for x in [Path(f)] if f.endswith(".ptx") else sorted(Path(f).glob("*.ptx")):
            register_ptx(x)
    core.emuSetPoison(int(poison))
    if capacity:
        core.emuSetCapacity(capacity)
    memory = DeviceMemory()
    core.emuSetCallback(_cb)
    import atexit

    atexit.register(lambda: core.emuSetCallback(None))
