"""Build of the C++ extension ``genhoi_kernels._C``; everything else is in pyproject.toml.

The extension holds the CPU backend's kernels and their registration through torch's stable ABI, so
one binary serves every torch from 2.13 on. It is compiled by ninja rather than by torch's
BuildExtension, because every instruction set has its own source file with its own flags, and
because importing torch is not possible here: pip isolates the build from the environment it
installs into, so torch's headers are looked up on disk.

An installation never fails for lack of a compiler. Whatever keeps the extension from being built
becomes one sentence, which is printed and shipped as ``genhoi_kernels/_C_missing.txt`` for the
package to show at run time.

Environment variables:
  GENHOI_BUILD_CPU   unset: build the extension if possible; 0: do not build it; 1: fail without it
  CXX                the C++ compiler (default: the first of c++, g++, clang++)
  CXXFLAGS, LDFLAGS  appended to the flags below
  MAX_JOBS           compilations at a time (default: ninja's choice)
"""

from __future__ import annotations

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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from setuptools import Distribution, Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.editable_wheel import editable_wheel
from setuptools.errors import CompileError, SetupError

ROOT = Path(__file__).resolve().parent
PACKAGE = "genhoi_kernels"
MISSING_FILE = "_C_missing.txt"
MIN_TORCH = (2, 13)

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


class NotBuiltError(Exception):
    """Why there is no extension, as the rest of 'The C++ extension was not built: ...'."""


@dataclass(frozen=True)
class Outcome:
    """What became of the native part: a library, or the sentence that says why there is none."""

    library: Path | None
    reason: str | None


@dataclass(frozen=True)
class Torch:
    folder: Path
    version: str

    @property
    def release(self) -> tuple[int, ...]:
        return tuple(int(part) for part in re.findall(r"\d+", self.version)[:2])


def requested() -> bool | None:
    """GENHOI_BUILD_CPU: True (must be built), False (must not) or None (if possible)."""
    value = os.environ.get("GENHOI_BUILD_CPU", "")
    try:
        return {"": None, "0": False, "1": True}[value]
    except KeyError:
        raise SetupError(f"GENHOI_BUILD_CPU must be 0, 1 or unset, not {value!r}") from None


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
            match = re.search(r"__version__ = '([^']+)'", version_file.read_text(encoding="utf-8"))
            if match:
                return Torch(folder, match[1])
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
    found = sorted([*ROOT.glob("csrc/*.cpp"), *ROOT.glob("csrc/cpu/*.cpp")])
    levels: list[str | None] = [None, *ISA_FLAGS] if x86 else [None]
    return [path.relative_to(ROOT) for isa in levels for path in found if isa_of(path) == isa]


def write_ninja(build: Path, library: Path, torch: Torch, compiler: list[str]) -> None:
    # Imported here: a build without the extension needs neither package.
    import pybind11
    from ninja import ninja_syntax

    common = [
        standard_flag(compiler),
        *COMMON_FLAGS,
        *DEFINES,
        "-Icsrc",
        # -isystem: their warnings are not ours.
        *["-isystem", str(torch.folder / "include")],
    ]
    binding = ["-isystem", python_include(), "-isystem", pybind11.get_include()]
    link = ["-shared", "-Wl,--as-needed"]
    if sys.platform == "darwin":
        link = ["-bundle", "-undefined", "dynamic_lookup"]
    # No rpath: torch is always imported first, and its folder may be another one by then.
    libraries = [f"-L{torch.folder / 'lib'}", "-ltorch_cpu"]

    def shell(words: list[str]) -> str:
        return shlex.join(words).replace("$", "$$")

    with (build / "build.ninja").open("w", encoding="utf-8") as file:
        ninja = ninja_syntax.Writer(file)
        ninja.variable("builddir", build.relative_to(ROOT).as_posix())  # of ninja's own records
        ninja.variable("cxx", shell(compiler))
        ninja.variable("common", shell(common))
        ninja.variable("extra", os.environ.get("CXXFLAGS", "").replace("$", "$$"))
        ninja.rule(
            "compile",
            command="$cxx $common $flags $extra -MMD -MF $out.d -c $in -o $out",
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
            isa = isa_of(source)
            flags = ISA_FLAGS[isa] if isa else []
            if source.name == BINDING:
                flags = [*flags, *binding]
            target = build.relative_to(ROOT) / source.with_suffix(".o")
            objects.append(target.as_posix())
            ninja.build(
                [objects[-1]],
                "compile",
                [source.as_posix()],
                variables={"flags": shell(flags)},
            )
        ninja.build(
            [library.relative_to(ROOT).as_posix()],
            "link",
            objects,
            variables={"extra": os.environ.get("LDFLAGS", "").replace("$", "$$")},
        )


def run_ninja(build: Path) -> None:
    from ninja import BIN_DIR

    name = Path(BIN_DIR, "ninja")
    ninja = str(name) if name.is_file() else shutil.which("ninja")
    if ninja is None:
        raise NotBuiltError("the ninja program was not found (pip install ninja)")
    command = [ninja, "-f", str(build.relative_to(ROOT) / "build.ninja")]
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
        error = next((line for line in log if "error: " in line), "see the build's output")
        raise NotBuiltError(f"compiling it failed ({error[:300]})")


def build_native(library_name: str) -> Outcome:
    """Builds the extension, or says why not. Raises only if GENHOI_BUILD_CPU=1 asked for it."""
    try:
        if requested() is False:
            raise NotBuiltError("GENHOI_BUILD_CPU=0 was set when the package was installed")
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
        build = ROOT / "build" / f"native-{sysconfig.get_config_var('SOABI') or 'unknown'}"
        build.mkdir(parents=True, exist_ok=True)
        library = build / library_name
        try:
            write_ninja(build, library, torch, compiler)
        except ImportError as error:
            raise NotBuiltError(
                f"the Python package {error.name} is missing at build time"
            ) from None
        run_ninja(build)
        return Outcome(library, None)
    except NotBuiltError as error:
        sentence = f"The C++ extension was not built: {error}."
        if requested():
            raise CompileError(f"{sentence} GENHOI_BUILD_CPU=1 makes this an error.") from error
        print(f"genhoi-kernels: {sentence} Installing without it.", file=sys.stderr, flush=True)
        return Outcome(None, sentence)


class GenhoiDistribution(Distribution):
    outcome: Outcome | None = None

    def drop_extension_if_missing(self) -> None:
        """Without the extension the rest is pure Python, and setuptools shall treat it so."""
        if self.outcome is not None and self.outcome.library is None:
            self.ext_modules: list[Extension] = []


class BuildExt(build_ext):
    def run(self) -> None:
        assert isinstance(self.distribution, GenhoiDistribution)
        file_name = self.get_ext_filename(f"{PACKAGE}._C")
        if self.distribution.outcome is None:
            self.distribution.outcome = build_native(Path(file_name).name)
        outcome = self.distribution.outcome

        in_place = self.inplace or self.editable_mode
        base = ROOT if in_place else Path(self.build_lib)
        library = base / file_name
        missing = base / PACKAGE / MISSING_FILE
        library.parent.mkdir(parents=True, exist_ok=True)
        # Either may be left from an earlier build. The library is unlinked rather than overwritten:
        # a process that has it mapped keeps its own copy.
        library.unlink(missing_ok=True)
        missing.unlink(missing_ok=True)
        if outcome.library is not None:
            shutil.copy2(outcome.library, library)
        else:
            missing.write_text(f"{outcome.reason}\n", encoding="utf-8")

    def get_outputs(self) -> list[str]:
        if self.inplace or self.editable_mode:
            return []
        return [str(Path(self.build_lib) / self.get_ext_filename(f"{PACKAGE}._C"))]

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
    if "setuptools.build_meta" not in sys.modules or requested() is False:
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
