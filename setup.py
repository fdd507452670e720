"""Build of the C++ extension ``genhoi_kernels._C`` and of the CUDA library beside it; everything
else is in pyproject.toml.

The extension holds the CPU backend's kernels, and the registration of all kernels through torch's
stable ABI, so one binary serves every torch from MIN_TORCH (in native.py) on. It is
compiled by ninja rather than by torch's BuildExtension, because every instruction set has its own
source file with its own flags, and because importing torch is not possible here: pip isolates the
build from the environment it installs into, so torch's headers are looked up on disk.

``genhoi_kernels/libgenhoi_cuda.so`` holds the CUDA kernels. It needs CUDA's runtime library, and
knows no torch; the extension opens it when it is first needed, and so is imported without CUDA too.

An installation never fails for lack of a compiler. Whatever keeps one of the two from being built
becomes one sentence, which is printed and shipped as ``genhoi_kernels/_C_missing.txt`` or
``_cuda_missing.txt`` for the package to show at run time.

Environment variables:
  GENHOI_BUILD_CPU   unset: build the extension if possible; 0: do not build it; 1: fail without it
  GENHOI_BUILD_CUDA  unset: build the CUDA library if nvcc and a torch of the same CUDA are there;
                     0: do not build it; 1: build it for whatever torch, and fail without it
  CXX                the C++ compiler (default: the first of c++, g++, clang++)
  CXXFLAGS, LDFLAGS  appended to the flags below
  CUDACXX            nvcc (default: that in CUDA_HOME, else on PATH, else in /usr/local/cuda)
  TORCH_CUDA_ARCH_LIST  GPUs to compile for, as torch writes them: "8.0;9.0a;12.0+PTX"
                     (default: see CUDA_ARCHITECTURES)
  MAX_JOBS           compilations at a time (default: ninja's choice, and of nvcc's as many as
                     memory has room for)
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from setuptools import Distribution, Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.editable_wheel import editable_wheel
from setuptools.errors import CompileError, SetupError

if TYPE_CHECKING:
    from ninja.ninja_syntax import Writer as NinjaWriter

ROOT = Path(__file__).resolve().parent
PACKAGE = "genhoi_kernels"
BUILD_CPU, BUILD_CUDA = "GENHOI_BUILD_CPU", "GENHOI_BUILD_CUDA"
MISSING_FILE = "_C_missing.txt"
CUDA_LIBRARY = "libgenhoi_cuda.so"
CUDA_MISSING_FILE = "_cuda_missing.txt"
MIN_NVCC = (12, 8)  # the first that knows all of CUDA_ARCHITECTURES


def oldest_torch() -> tuple[int, ...]:
    """MIN_TORCH of the package, read as text: to import it takes a torch."""
    text = (ROOT / PACKAGE / "backends" / "native.py").read_text(encoding="utf-8")
    found = re.search(r"^MIN_TORCH = \((\d+), (\d+)\)$", text, re.MULTILINE)
    if found is None:
        raise SetupError(f"{PACKAGE}/backends/native.py has no line MIN_TORCH = (major, minor)")
    return tuple(map(int, found.groups()))


MIN_TORCH = oldest_torch()

# The binding is the only source that sees Python and pybind11. Under build isolation their headers
# move with every build; kept away from the kernels, they do not cause those to be recompiled.
BINDING = "module.cpp"

# The oldest libtorch the binary may run with: headers hide everything newer.
DEFINES = [f"-DTORCH_TARGET_VERSION=0x{MIN_TORCH[0]:02x}{MIN_TORCH[1]:02x}000000000000", "-DNDEBUG"]

# Neither errno nor floating-point traps are read anywhere. -ffast-math stays out: NaN and Inf must
# propagate as documented, and it would let the compiler assume that there are none.
COMMON_FLAGS = [
    *["-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"],
    *["-Wall", "-Wextra", "-Wno-psabi"],
]

# Sources named *_<suffix>.cpp are compiled for that instruction set, on x86-64 only; elsewhere they
# are left out, and whoever calls into them must be under `#if defined(__x86_64__)`. All other
# sources keep to the platform's baseline: code in them runs before anyone has looked at the CPU.
# From the weakest to the strongest; see sources().
AVX512 = [
    *["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"],
    "-mprefer-vector-width=512",
]
ISA_FLAGS = {
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": AVX512,
    "avx512bf16": [*AVX512, "-mavx512bf16"],
    "amx": [*AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"],
}

# Machine code for these, as far as nvcc has them, and PTX of the first in any case: it serves every
# later GPU. What is older lacks instructions that the kernels use. The code for 8.0 is that of 8.6
# and 8.9 too: they run it, and code of their own spills registers.
CUDA_ARCHITECTURES = ["8.0", "9.0", "10.0", "12.0"]
CUDA_FLAGS = ["-std=c++17", "-O3", "-DNDEBUG", "-Xcompiler", "-fPIC,-Wall,-Wno-psabi"]
CUDA_EXPORTS = Path("csrc/cuda/exports.map")
NVCC_BYTES = 3 << 30  # memory that one run of nvcc may take

# What a compiler's message has. nvcc's own have a space before the colon.
ERROR = re.compile(r"(error|fatal) *: ")


class NotBuiltError(Exception):
    """Why something is not there, as the rest of 'The C++ extension was not built: ...'."""


@dataclass(frozen=True)
class Outcome:
    """What became of a native part: a library, or the sentence that says why there is none."""

    library: Path | None
    reason: str | None


@dataclass(frozen=True)
class Torch:
    folder: Path
    version: str
    cuda: str | None  # version of the CUDA it was built with

    @property
    def release(self) -> tuple[int, ...]:
        return numbers(self.version)[:2]


@dataclass(frozen=True)
class Nvcc:
    command: list[str]
    version: tuple[int, ...]


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def requested(variable: str) -> bool | None:
    """GENHOI_BUILD_CPU or _CUDA: True (must be built), False (must not) or None (if possible)."""
    value = os.environ.get(variable, "")
    try:
        return {"": None, "0": False, "1": True}[value]
    except KeyError:
        raise SetupError(f"{variable} must be 0, 1 or unset, not {value!r}") from None


def torch_folders() -> Iterator[Path]:
    """Where torch may lie: first what can be imported, then the interpreter's own folders.

    pip's build isolation hides the latter from sys.path but leaves them on disk.
    """
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin is not None:
        yield Path(spec.origin).parent
    folders = [sysconfig.get_path("platlib"), sysconfig.get_path("purelib")]
    folders += site.getsitepackages()
    if sys.prefix == sys.base_prefix:
        folders.append(site.getusersitepackages())
    for folder in dict.fromkeys(folders):
        yield Path(folder) / "torch"


def find_torch() -> Torch | None:
    for folder in torch_folders():
        version_file = folder / "version.py"
        if version_file.is_file():
            text = version_file.read_text(encoding="utf-8")
            version = re.search(r"^__version__ = '([^']+)'", text, re.MULTILINE)
            cuda = re.search(r"^cuda\b.*= '([^']+)'", text, re.MULTILINE)
            if version:
                return Torch(folder, version[1], cuda[1] if cuda else None)
    return None


def find_compiler() -> list[str]:
    named = shlex.split(os.environ.get("CXX", ""))
    if named:
        if shutil.which(named[0]) is None:
            raise NotBuiltError(f"the compiler named by CXX, {named[0]}, was not found")
        return named
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise NotBuiltError("no C++ compiler was found (looked for c++, g++ and clang++)")


def nvcc_command() -> list[str]:
    named = shlex.split(os.environ.get("CUDACXX", ""))
    if named:
        if shutil.which(named[0]) is None:
            raise NotBuiltError(f"the compiler named by CUDACXX, {named[0]}, was not found")
        return named
    home = os.environ.get("CUDA_HOME", "")
    if home:
        if shutil.which(f"{home}/bin/nvcc") is None:
            raise NotBuiltError(f"there is no bin/nvcc in CUDA_HOME, {home}")
        return [f"{home}/bin/nvcc"]
    for name in ("nvcc", "/usr/local/cuda/bin/nvcc"):
        if shutil.which(name):
            return [name]
    raise NotBuiltError(
        "nvcc was not found (looked for it in CUDA_HOME, on PATH and in /usr/local/cuda)"
    )


def ask_nvcc(command: list[str], option: str) -> str:
    try:
        answer = subprocess.run([*command, option], capture_output=True, text=True)
    except OSError as error:
        raise NotBuiltError(f"{shlex.join(command)} does not run ({error.strerror})") from None
    if answer.returncode != 0:
        raise NotBuiltError(f"{shlex.join([*command, option])} fails")
    return answer.stdout


def find_nvcc() -> Nvcc:
    command = nvcc_command()
    release = re.search(r"release (\d+\.\d+)", ask_nvcc(command, "--version"))
    if release is None:
        raise NotBuiltError(f"{shlex.join(command)} does not say which version it is")
    if numbers(release[1]) < MIN_NVCC:
        needed = ".".join(map(str, MIN_NVCC))
        raise NotBuiltError(f"it needs nvcc {needed} or newer, and nvcc {release[1]} was found")
    return Nvcc(command, numbers(release[1]))


def torch_cuda() -> str | None:
    """The CUDA version of the torch at hand; None where GENHOI_BUILD_CUDA=1 says not to look."""
    if requested(BUILD_CUDA):
        return None
    torch = find_torch()
    if torch is None or torch.cuda is None:
        found = f"torch {torch.version}, which is none," if torch else "no torch"
        raise NotBuiltError(f"it is for CUDA builds of torch, and {found} was found")
    return torch.cuda


def gpu_code_flags(nvcc: Nvcc) -> list[str]:
    """-gencode for TORCH_CUDA_ARCH_LIST, else for CUDA_ARCHITECTURES, and PTX of the oldest."""
    named = re.split(r"[;,\s]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip("; "))
    wanted = [word for word in named if word] or CUDA_ARCHITECTURES
    oldest = CUDA_ARCHITECTURES[0].replace(".", "")
    known = ask_nvcc(nvcc.command, "--list-gpu-code").split()
    codes = []
    for word in wanted:
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", word)
        if match is None:
            raise NotBuiltError(f"TORCH_CUDA_ARCH_LIST has {word!r}, which is no number like 8.0")
        major, minor, suffix, ptx = match.groups()
        if int(major + minor) < int(oldest):
            continue
        architecture = f"{major}{minor}{suffix}"
        if f"sm_{major}{minor}" in known:
            codes.append(f"arch=compute_{architecture},code=sm_{architecture}")
        elif word in named:
            raise NotBuiltError(f"TORCH_CUDA_ARCH_LIST has {word}, which this nvcc doesn't know")
        if ptx:
            codes.append(f"arch=compute_{architecture},code=compute_{architecture}")
    if not codes:
        raise NotBuiltError(
            f"TORCH_CUDA_ARCH_LIST names no GPU of compute capability {CUDA_ARCHITECTURES[0]} "
            f"or later"
        )
    codes.append(f"arch=compute_{oldest},code=compute_{oldest}")
    return [word for code in dict.fromkeys(codes) for word in ("-gencode", code)]


def free_memory() -> int | None:
    """Bytes that programs can still take, where the system says so."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    available = re.search(r"^MemAvailable:\s*(\d+) kB", text, re.MULTILINE)
    return int(available[1]) * 1024 if available else None


def nvcc_jobs() -> int:
    """Runs of nvcc at a time: as many as there are cores, or memory for them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = free_memory()
    room = cores or 1 if memory is None else memory // NVCC_BYTES
    return max(1, min(cores or 1, room))


def standard_flag(compiler: list[str]) -> str:
    """The newest C++ standard the compiler knows; a compiler that cannot run is found here too."""
    for flag in ("-std=c++20", "-std=c++17"):
        try:
            probe = subprocess.run(
                [*compiler, flag, "-x", "c++", "-fsyntax-only", os.devnull], capture_output=True
            )
        except OSError:
            continue
        if probe.returncode == 0:
            return flag
    raise NotBuiltError(f"the compiler {shlex.join(compiler)} does not compile C++17")


def python_include() -> str:
    include = sysconfig.get_path("include")
    if not (Path(include) / "Python.h").is_file():
        raise NotBuiltError(
            "Python.h was not found (on Debian and Ubuntu: apt-get install python3-dev)"
        )
    return include


def isa_of(source: Path) -> str | None:
    return next((isa for isa in ISA_FLAGS if source.stem.endswith(f"_{isa}")), None)


def sources() -> list[Path]:
    """All sources for this machine, relative to the root, the weakest instruction set first.

    Inline functions and templates may be compiled in several files, and the linker keeps the copy
    of the first: in this order never one that the CPU might not be able to run.
    """
    x86 = platform.machine().lower() in ("x86_64", "amd64") and sys.maxsize > 2**32
    found = sorted(
        path for part in ("", "cpu/", "cuda/") for path in ROOT.glob(f"csrc/{part}*.cpp")
    )
    levels: list[str | None] = [None, *ISA_FLAGS] if x86 else [None]
    return [path.relative_to(ROOT) for isa in levels for path in found if isa_of(path) == isa]


def cuda_sources() -> list[Path]:
    return sorted(path.relative_to(ROOT) for path in ROOT.glob("csrc/cuda/**/*.cu"))


def flags_of(source: Path) -> list[str]:
    """Compiler flags that not all sources of the extension have."""
    import pybind11

    isa = isa_of(source)
    if isa:
        return ISA_FLAGS[isa]
    if source.name == BINDING:
        return ["-isystem", python_include(), "-isystem", pybind11.get_include()]
    if source.parent.name == "cuda":
        # The part of torch's stable interface that deals with streams; it needs no CUDA headers.
        return ["-DUSE_CUDA"]
    return []


def shell(words: list[str]) -> str:
    return shlex.join(words).replace("$", "$$")


def shell_variable(name: str) -> str:
    return os.environ.get(name, "").replace("$", "$$")


def write_extension(
    ninja: NinjaWriter, build: Path, library: Path, torch: Torch, compiler: list[str]
) -> None:
    """The rules for the extension."""
    common = [
        standard_flag(compiler),
        *COMMON_FLAGS,
        *DEFINES,
        "-Icsrc",
        # -isystem: their warnings are not ours.
        *["-isystem", str(torch.folder / "include")],
    ]
    link = ["-shared", "-Wl,--as-needed"]
    if sys.platform == "darwin":
        link = ["-bundle", "-undefined", "dynamic_lookup"]
    # No rpath: torch is always imported first, and its folder may be another one by then.
    libraries = [f"-L{torch.folder / 'lib'}", "-ltorch_cpu", "-ldl"]

    ninja.variable("cxx", shell(compiler))
    ninja.variable("common", shell(common))
    ninja.variable("extra", shell_variable("CXXFLAGS"))
    ninja.rule(
        "compile",
        # Their headers first: torch brings a pybind11 of its own, which 2.11 guards with #error.
        command="$cxx $flags $common $extra -MMD -MF $out.d -c $in -o $out",
        depfile="$out.d",
        deps="gcc",
        description="compile $in",
    )
    ninja.rule(
        "link",
        command=f"$cxx {shell(link)} $in -o $out {shell(libraries)} $extra",
        description="link $out",
    )
    objects: list[str] = []
    for source in sources():
        objects.append((build / source.with_suffix(".o")).as_posix())
        flags = {"flags": shell(flags_of(source))}
        ninja.build([objects[-1]], "compile", [source.as_posix()], variables=flags)
    ninja.build(
        [library.as_posix()], "link", objects, variables={"extra": shell_variable("LDFLAGS")}
    )


def write_cuda(ninja: NinjaWriter, build: Path, library: Path, nvcc: Nvcc) -> None:
    """The rules for the CUDA library."""
    ninja.variable("nvcc", shell(nvcc.command))
    ninja.variable("cuda_flags", shell([*CUDA_FLAGS, "-Icsrc", *gpu_code_flags(nvcc)]))
    ninja.pool("nvcc", nvcc_jobs())
    ninja.rule(
        "compile_cuda",
        command="$nvcc $cuda_flags -MMD -MF $out.d -c $in -o $out",
        depfile="$out.d",
        deps="gcc",
        description="compile $in",
        pool="nvcc",
    )
    # The shared runtime is the one that torch has loaded: no rpath here either.
    link = ["-shared", "-cudart", "shared", "--no-device-link", "-Xlinker", "--no-undefined"]
    link += ["-Xlinker", f"--version-script={CUDA_EXPORTS.as_posix()}"]
    ninja.rule("link_cuda", command=f"$nvcc {shell(link)} $in -o $out", description="link $out")
    objects: list[str] = []
    for source in cuda_sources():
        objects.append((build / source.with_suffix(".cu.o")).as_posix())
        ninja.build([objects[-1]], "compile_cuda", [source.as_posix()])
    exports = CUDA_EXPORTS.as_posix()
    ninja.build([library.as_posix()], "link_cuda", objects, implicit=[exports])


@contextlib.contextmanager
def ninja_file(folder: Path) -> Iterator[NinjaWriter]:
    """The file of what ninja builds in a folder, which is relative to the root."""
    try:
        # Imported here, as all that the build needs: without it, the package installs.
        from ninja import ninja_syntax

        (ROOT / folder).mkdir(parents=True, exist_ok=True)
        with (ROOT / folder / "build.ninja").open("w", encoding="utf-8") as file:
            ninja = ninja_syntax.Writer(file)
            ninja.variable("builddir", folder.as_posix())  # of ninja's own records
            yield ninja
    except ImportError as error:
        raise NotBuiltError(f"the Python package {error.name} is missing at build time") from None


def run_ninja(folder: Path) -> None:
    from ninja import BIN_DIR

    name = Path(BIN_DIR, "ninja")
    ninja = str(name) if name.is_file() else shutil.which("ninja")
    if ninja is None:
        raise NotBuiltError("the ninja program was not found (pip install ninja)")
    command = [ninja, "-f", str(folder / "build.ninja")]
    if os.environ.get("MAX_JOBS"):
        command += ["-j", os.environ["MAX_JOBS"]]
    log = []
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "LC_ALL": "C"},  # the search for the error below is in English
    )
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        log.append(line.strip())
    if process.wait() != 0:
        error = next((line for line in log if ERROR.search(line)), "see the build's output")
        raise NotBuiltError(f"compiling it failed ({error[:300]})")


def build_extension(name: str) -> Path:
    """Builds the extension. Raises NotBuiltError where that can't be done."""
    if sys.platform == "win32":
        raise NotBuiltError("it is not supported on Windows")
    if not sources():
        raise NotBuiltError("its sources (csrc/) are missing")
    compiler = find_compiler()
    torch = find_torch()
    if torch is None:
        raise NotBuiltError("torch was not found in the environment the package was built in")
    if torch.release < MIN_TORCH:
        needed = ".".join(map(str, MIN_TORCH))
        raise NotBuiltError(
            f"it needs torch {needed} or newer, and torch {torch.version} was found"
        )
    # One folder for each interpreter, outside of setuptools' temporary ones: a second build
    # compiles only what has changed.
    folder = Path("build", f"native-{sysconfig.get_config_var('SOABI') or 'unknown'}")
    with ninja_file(folder) as ninja:
        write_extension(ninja, folder, folder / name, torch, compiler)
    run_ninja(folder)
    return ROOT / folder / name


def build_cuda(extension: Outcome) -> Path:
    """Builds the CUDA library. Raises NotBuiltError where that can't be done."""
    if extension.library is None:
        raise NotBuiltError("it is called through the C++ extension, which was not built")
    if not sys.platform.startswith("linux"):
        raise NotBuiltError("it is for Linux")
    if not cuda_sources():
        raise NotBuiltError("its sources (csrc/cuda/) are missing")
    cuda = torch_cuda()
    nvcc = find_nvcc()
    # Torch could not load another CUDA's library, so nobody has to wait for it.
    if cuda is not None and numbers(cuda)[0] != nvcc.version[0]:
        version = ".".join(map(str, nvcc.version))
        raise NotBuiltError(f"the torch found is for CUDA {cuda}, and nvcc {version} for another")
    folder = Path("build", "cuda")  # the same for every interpreter and torch
    with ninja_file(folder) as ninja:
        write_cuda(ninja, folder, folder / CUDA_LIBRARY, nvcc)
    run_ninja(folder)
    return ROOT / folder / CUDA_LIBRARY


def attempt(what: str, variable: str, build: Callable[[], Path]) -> Outcome:
    """What becomes of a native part. Raises only if its variable asked for it with a 1."""
    try:
        if requested(variable) is False:
            raise NotBuiltError(f"{variable}=0 was set when the package was installed")
        return Outcome(build(), None)
    except NotBuiltError as error:
        sentence = f"The {what} was not built: {error}."
        if requested(variable):
            raise CompileError(f"{sentence} {variable}=1 makes this an error.") from error
        print(f"genhoi-kernels: {sentence} Installing without it.", file=sys.stderr, flush=True)
        return Outcome(None, sentence)


@dataclass(frozen=True)
class Native:
    """What became of the two native parts."""

    extension: Outcome
    cuda: Outcome


def build_native(extension_name: str) -> Native:
    extension = attempt("C++ extension", BUILD_CPU, lambda: build_extension(extension_name))
    return Native(extension, attempt("CUDA library", BUILD_CUDA, lambda: build_cuda(extension)))


class GenhoiDistribution(Distribution):
    native: Native | None = None

    def drop_extension_if_missing(self) -> None:
        """Without the extension the rest is pure Python, and setuptools shall treat it so."""
        if self.native is not None and self.native.extension.library is None:
            self.ext_modules: list[Extension] = []


def place(outcome: Outcome, library: Path, missing: Path) -> None:
    """Puts a library, or the reason why there is none, where the package looks for it."""
    library.parent.mkdir(parents=True, exist_ok=True)
    # Either may be left from an earlier build. The library is unlinked rather than overwritten: a
    # process that has it mapped keeps its own copy.
    library.unlink(missing_ok=True)
    missing.unlink(missing_ok=True)
    if outcome.library is not None:
        shutil.copy2(outcome.library, library)
    else:
        missing.write_text(f"{outcome.reason}\n", encoding="utf-8")


class BuildExt(build_ext):
    def run(self) -> None:
        assert isinstance(self.distribution, GenhoiDistribution)
        file_name = self.get_ext_filename(f"{PACKAGE}._C")
        if self.distribution.native is None:
            self.distribution.native = build_native(Path(file_name).name)
        native = self.distribution.native

        in_place = self.inplace or self.editable_mode
        package = (ROOT if in_place else Path(self.build_lib)) / PACKAGE
        place(native.extension, package / Path(file_name).name, package / MISSING_FILE)
        place(native.cuda, package / CUDA_LIBRARY, package / CUDA_MISSING_FILE)

    def get_outputs(self) -> list[str]:
        if self.inplace or self.editable_mode:
            return []
        assert isinstance(self.distribution, GenhoiDistribution)
        outputs = [self.get_ext_filename(f"{PACKAGE}._C")]
        if self.distribution.native and self.distribution.native.cuda.library:
            outputs.append(f"{PACKAGE}/{CUDA_LIBRARY}")
        return [str(Path(self.build_lib, name)) for name in outputs]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class BdistWheel(bdist_wheel):
    def run(self) -> None:
        # The tag was chosen before the build; whether it is right is known only after it.
        self.reinitialize_command("build_ext", inplace=False)
        self.run_command("build")
        self.distribution.drop_extension_if_missing()
        self.root_is_pure = not self.distribution.has_ext_modules()
        super().run()


class EditableWheel(editable_wheel):
    def run(self) -> None:
        # As above: the base class writes the tag first and builds later.
        self.reinitialize_command("build_ext", inplace=True)
        self.run_command("build_ext")
        self.distribution.drop_extension_if_missing()
        super().run()


def build_requirements() -> list[str]:
    """torch, if the extension is wanted and there is no torch whose headers could be used.

    Asked only by pip and its kind: setuptools answers their question for build requirements from
    setup_requires, while in a direct call of setup.py it would install them itself.
    """
    if "setuptools.build_meta" not in sys.modules or requested(BUILD_CPU) is False:
        return []
    if sys.platform == "win32" or find_torch() is not None:
        return []
    try:
        find_compiler()
    except NotBuiltError:
        return []
    return [f"torch>={MIN_TORCH[0]}.{MIN_TORCH[1]}"]


setup(
    distclass=GenhoiDistribution,
    cmdclass={"build_ext": BuildExt, "bdist_wheel": BdistWheel, "editable_wheel": EditableWheel},
    ext_modules=[Extension(f"{PACKAGE}._C", [str(path) for path in sources()])],
    setup_requires=build_requirements(),
)
