"""The packages that not every installation has, and the sentence for one that is missing."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

__all__ = ["how_to_install", "is_installed", "need", "needed_for"]

# Name of the module to import: (package, extra of pyproject.toml that brings it).
_EXTRAS = {
    "PIL": ("pillow", "wan"),
    "accelerate": ("accelerate", "wan"),
    "av": ("av", "video"),
    "click": ("click", "video"),
    "cloup": ("cloup", "video"),
    "cv2": ("opencv-python-headless", "video"),
    "diffusers": ("diffusers", "wan"),
    "ftfy": ("ftfy", "wan"),
    "filelock": ("filelock", "train"),
    "huggingface_hub": ("huggingface_hub", "wan"),
    "matplotlib": ("matplotlib", "video"),
    "peft": ("peft", "train"),
    "rich": ("rich", "video"),
    "safetensors": ("safetensors", "wan"),
    "skimage": ("scikit-image", "train"),
    "tensorboard": ("tensorboard", "train"),
    "tqdm": ("tqdm", "wan"),
    "torchvision": ("torchvision", "sam"),
    "transformers": ("transformers", "wan"),
    "yaml": ("pyyaml", "train"),
}


@contextmanager
def needed_for(purpose: str) -> Iterator[None]:
    """Say which extra to install if the block imports a package that is missing.

    Raises ImportError with one sentence, such as "attach needs diffusers (pip install
    'genhoi-kernels[wan]')". What no extra brings is raised as it is.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in _EXTRAS:
            raise
        raise _missing(module, purpose) from error


def need(module: str, purpose: str) -> None:
    """Raise the ImportError of `needed_for` unless this module is installed; it is not imported."""
    if not is_installed(module):
        raise _missing(module, purpose)


def is_installed(module: str) -> bool:
    """Say whether a module can be imported, without importing it."""
    return find_spec(module) is not None


def how_to_install(module: str) -> str:
    """Return the command that installs the extra which brings this module."""
    return f"pip install 'genhoi-kernels[{_EXTRAS[module][1]}]'"


def _missing(module: str, purpose: str) -> ImportError:
    package = _EXTRAS[module][0]
    return ImportError(f"{purpose} needs {package} ({how_to_install(module)})", name=module)
