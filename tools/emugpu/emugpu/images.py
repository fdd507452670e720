"""From what a program gives the driver (fat binaries, cubins, PTX) to modules of the emulator."""

import ctypes
import functools
import hashlib
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from . import libraries
from .build import BUILD, cuda_home
from .device_memory import DeviceMemory, raw
from .errors import EmulatedGPUError, NotEmulatedError
from .ptxemu import Module, Parsed

FATBIN_WRAPPER = 0x466243B1  # what __cudaRegisterFatBinary gets; the pointer to the image is at 8
FATBIN = 0xBA55ED50

# ("image", address) or ("module", handle) -> PTX texts, or the reason why there are none
Key = tuple[str, int]
_texts: dict[Key, list[str] | str] = {}
_by_kernel: dict[tuple[Key, str], Module] = {}
_cubins: dict[str, str] = {}  # hash of a cubin -> PTX text
_registered: list[str] = []  # by hand
_parsed: dict[tuple[str, int], Module] = {}  # (hash of PTX, image) -> Module
memory: DeviceMemory | None = None  # where the modules' variables live; set by launch.start


class _DlInfo(ctypes.Structure):
    _fields_ = (
        ("fname", ctypes.c_char_p),
        ("fbase", ctypes.c_void_p),
        ("sname", ctypes.c_char_p),
        ("saddr", ctypes.c_void_p),
    )


def register_ptx(text_or_path: str | Path) -> None:
    """Make PTX known by hand: used for kernels whose fat binary holds no PTX."""
    text = str(text_or_path)
    if ".version" not in text:
        text = Path(text).read_text()
    _registered.append(text)
    _by_kernel.clear()


def register_environment() -> None:
    """Register what EMUGPU_PTX names: .ptx files, or folders of them."""
    for entry in filter(None, os.environ.get("EMUGPU_PTX", "").split(os.pathsep)):
        files = [Path(entry)] if entry.endswith(".ptx") else sorted(Path(entry).glob("*.ptx"))
        for path in files:
            register_ptx(path)


def register_cubin(cubin: bytes, ptx: str) -> None:
    """Make the PTX of a cubin known."""
    _cubins[hashlib.sha256(cubin).hexdigest()] = ptx


def _cuobjdump() -> str:
    candidates = [os.environ.get("EMUGPU_CUOBJDUMP"), shutil.which("cuobjdump")]
    home = cuda_home()
    if home is not None:
        candidates.append(str(home / "bin" / "cuobjdump"))
    candidates += [os.path.join(p, "triton/backends/nvidia/bin/cuobjdump") for p in sys.path]
    for candidate in candidates:
        if candidate and os.path.exists(candidate):
            return candidate
    raise EmulatedGPUError("emugpu: cuobjdump not found (set EMUGPU_CUOBJDUMP)")


def _library_of(address: int) -> str:
    info = _DlInfo()
    function = ctypes.CDLL(None).dladdr
    function.argtypes = [ctypes.c_void_p, ctypes.POINTER(_DlInfo)]
    found = function(address, ctypes.byref(info))
    return info.fname.decode() if found and info.fname else "?"


def _fatbin_ptx(address: int) -> list[str]:
    """PTX texts in a fat binary (its header's size is at 6, that of the payload at 8)."""
    magic, _, header, payload = struct.unpack("<IHHQ", ctypes.string_at(address, 16))
    if magic != FATBIN:
        raise EmulatedGPUError(f"not a fat binary at {address:#x}")
    blob = ctypes.string_at(address, header + payload)
    cache = BUILD / "ptx" / hashlib.sha256(blob).hexdigest()[:24]
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=cache.parent))
        (work / "kernels.fatbin").write_bytes(blob)
        command = [_cuobjdump(), "-xptx", "all", "kernels.fatbin"]
        result = subprocess.run(command, cwd=work, capture_output=True, text=True)
        (work / "kernels.fatbin").unlink()
        if result.returncode and "does not contain" not in result.stderr + result.stdout:
            shutil.rmtree(work)
            raise EmulatedGPUError(f"cuobjdump: {result.stderr}")
        try:
            os.replace(work, cache)
        except OSError:  # another process was faster
            shutil.rmtree(work)
    return [path.read_text() for path in sorted(cache.glob("*.ptx"))]


def _elf_size(address: int) -> int:
    """The size of an ELF file in memory, from its section and program headers."""

    def read(form: str, offset: int) -> tuple[int, ...]:
        return struct.unpack(form, ctypes.string_at(address + offset, struct.calcsize(form)))

    (programs,), (sections,) = read("<Q", 32), read("<Q", 40)
    program_size, program_count, section_size, section_count = read("<HHHH", 54)
    end = max(sections + section_size * section_count, programs + program_size * program_count)
    for i in range(section_count):
        (kind,) = read("<I", sections + section_size * i + 4)
        offset, size = read("<QQ", sections + section_size * i + 24)
        if kind != 8:  # SHT_NOBITS takes no space
            end = max(end, offset + size)
    return end


def _image_texts(address: int) -> list[str] | str:
    head = ctypes.string_at(address, 4)
    if head == struct.pack("<I", FATBIN_WRAPPER):
        return _fatbin_ptx(struct.unpack("<Q", ctypes.string_at(address + 8, 8))[0])
    if head == struct.pack("<I", FATBIN):
        return _fatbin_ptx(address)
    if head == b"\x7fELF":
        size = _elf_size(address)
        for padding in range(9):  # Triton passes the file, whose end may be padded
            cubin = ctypes.string_at(address, size + padding)
            text = _cubins.get(hashlib.sha256(cubin).hexdigest())
            if text:
                return [text]
        return "a cubin whose PTX is not registered (emugpu.register_cubin)"
    return [ctypes.string_at(address).decode()]


def load_data(handle: int, address: int) -> None:
    """A module was loaded from memory."""
    _texts["module", handle] = _image_texts(address)


def load_file(handle: int, path: Path) -> None:
    """A module was loaded from a file."""
    beside = path.with_suffix(".ptx")
    if path.suffix == ".ptx" or beside.exists():
        _texts["module", handle] = [beside.read_text()]
    else:
        text = _cubins.get(hashlib.sha256(path.read_bytes()).hexdigest())
        missing = f"{path}, a cubin without PTX beside it"
        _texts["module", handle] = [text] if text else missing


def load_variables(address: int) -> None:
    """The host is about to use a variable of a fat binary: it must have its initial value."""
    for text in _image_texts(address):
        if _arch(text)[0] <= libraries.compute_capability:
            functions = Parsed(text).functions.values()
            kernel = next((function.name for function in functions if function.is_entry), None)
            if kernel:
                module_for(address, 0, kernel)


def _arch(text: str) -> tuple[int, bool]:
    """(number, whether it is specific: sm_90a) of a PTX text's target."""
    i = text.index(".target") + len(".target")
    target = text[i : i + 40].split()[0].split(",")[0]
    digits = "".join(c for c in target if c.isdigit())
    return int(digits), target.endswith(("a", "f")) and not target[-2:].isdigit()


def _pick(texts: list[str], kernel: str) -> str | None:
    """The text for the highest architecture that runs here."""
    best: tuple[tuple[int, bool], str] | None = None
    for text in texts:
        if kernel not in text:
            continue
        arch, special = _arch(text)
        here = libraries.compute_capability
        if arch > here or (special and arch != here):
            continue
        if best is None or (arch, special) > best[0]:
            best = ((arch, special), text)
    return best[1] if best else None


def module_for(image: int, handle: int, kernel: str) -> Module:
    """The module of a kernel, by its fat binary or its module handle.

    Raises NotEmulatedError if there is no PTX of it for this architecture.
    """
    key = ("image", image) if image else ("module", handle)
    if (key, kernel) in _by_kernel:
        return _by_kernel[key, kernel]
    if key not in _texts:
        _texts[key] = _image_texts(image) if image else "an unknown module"
    texts = _texts[key]
    here = libraries.compute_capability
    if isinstance(texts, str):
        why, text = texts, None
    else:
        why = f"{len(texts)} PTX images, none for sm_{here} with this kernel"
        text = _pick(texts, kernel)
    text = text or _pick(_registered, kernel)
    if text is None:
        library = _library_of(image) if image else "?"
        if "libtorch" in library or "/nvidia/" in library:
            raise NotEmulatedError(
                f"torch kernel {demangle(kernel)} launched on the emulated GPU (from "
                f"{os.path.basename(library)}): the operator above it is not redirected to the CPU"
            )
        raise NotEmulatedError(
            f"no PTX for kernel {demangle(kernel)} of {library}: {why}. Build with "
            f"-gencode=arch=compute_{here},code=compute_{here} (beside or instead of sm_) or call "
            "emugpu.register_ptx"
        )
    identity = (hashlib.sha256(text.encode()).hexdigest(), image)
    if identity not in _parsed:
        _parsed[identity] = _load(text, image)
    _by_kernel[key, kernel] = _parsed[identity]
    return _parsed[identity]


def _load(text: str, image: int) -> Module:
    """Parse; module variables live in device memory, where cudaMemcpyToSymbol also finds them."""
    module = Module.from_ptx(text, memory)
    for name, address in module.addresses.items():
        variable = module.parsed.variables[name]
        known = None
        if image:
            known = libraries.cudart.emuSymbol(image, name.encode(), variable.size)
        if known:
            libraries.core.emuFree(address)
            address = known
        storage = raw(address, max(variable.size, 1))
        storage[:] = module.globals[name]
        module.globals[name], module.addresses[name] = storage, address
    module.relocate()
    return module


@functools.cache
def copies_f16_accumulators(module: Module) -> bool:
    """Whether Triton's code copies registers of a pending wgmma (see Module.launch)."""
    return any(
        "wgmma.mma_async" in statement and ".f16.f16.f16" in statement
        for function in module.parsed.functions.values()
        for _, statement in function.body or []
    )


@functools.cache
def demangle(symbol: str) -> str:
    """The C++ name of a symbol, or the symbol."""
    try:
        result = subprocess.run(["c++filt", symbol], capture_output=True, text=True)
    except OSError:
        return symbol
    return result.stdout.strip() or symbol
