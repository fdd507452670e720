"""The commands of setuptools that build and ship the native parts."""

from pathlib import Path

from setuptools import Distribution, Extension
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.editable_wheel import editable_wheel

from build_tools.native import CUDA_LIBRARY, Native, build_native
from build_tools.outcome import place
from build_tools.project import PACKAGE, ROOT

EXTENSION = f"{PACKAGE}._C"
EXTENSION_NOTE = "_C_missing.txt"
CUDA_NOTE = "_cuda_missing.txt"


class NativeDistribution(Distribution):
    """The package, and what became of its native parts once they were built."""

    native: Native | None = None

    def drop_extension_if_missing(self) -> None:
        """Let setuptools treat a package without the extension as pure Python, which it is."""
        if self.native is not None and self.native.extension.library is None:
            self.ext_modules: list[Extension] = []


class BuildExt(build_ext):
    """Builds both parts, once, and puts them or the notes about them into the package."""

    def run(self) -> None:
        assert isinstance(self.distribution, NativeDistribution)
        extension_file = Path(self.get_ext_filename(EXTENSION)).name
        if self.distribution.native is None:
            self.distribution.native = build_native(extension_file)
        native = self.distribution.native

        in_place = self.inplace or self.editable_mode
        package = (ROOT if in_place else Path(self.build_lib)) / PACKAGE
        place(native.extension, package / extension_file, package / EXTENSION_NOTE)
        place(native.cuda, package / CUDA_LIBRARY, package / CUDA_NOTE)

    def get_outputs(self) -> list[str]:
        if self.inplace or self.editable_mode:
            return []
        assert isinstance(self.distribution, NativeDistribution)
        outputs = [self.get_ext_filename(EXTENSION)]
        if self.distribution.native and self.distribution.native.cuda.library:
            outputs.append(f"{PACKAGE}/{CUDA_LIBRARY}")
        return [str(Path(self.build_lib, name)) for name in outputs]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class BdistWheel(bdist_wheel):
    """Builds first: the base class chooses the wheel's tag before it knows what was built."""

    def run(self) -> None:
        self.reinitialize_command("build_ext", inplace=False)
        self.run_command("build")
        self.distribution.drop_extension_if_missing()
        self.root_is_pure = not self.distribution.has_ext_modules()
        super().run()


class EditableWheel(editable_wheel):
    """Builds first, for the same reason."""

    def run(self) -> None:
        self.reinitialize_command("build_ext", inplace=True)
        self.run_command("build_ext")
        self.distribution.drop_extension_if_missing()
        super().run()
