"""The packages that not every installation has, and the sentence for one that is missing."""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["needed_for"]

# Name of the module to import: (package, extra of pyproject.toml that brings it).
_EXTRAS = {
    "PIL": ("pillow", "video"),
    "accelerate": ("accelerate", "wan"),
    "av": ("av", "video"),
    "click": ("click", "video"),
    "diffusers": ("diffusers", "wan"),
    "filelock": ("filelock", "train"),
    "huggingface_hub": ("huggingface_hub", "wan"),
    "matplotlib": ("matplotlib", "video"),
    "peft": ("peft", "train"),
    "rich": ("rich", "video"),
    "safetensors": ("safetensors", "wan"),
    "skimage": ("scikit-image", "train"),
    "tensorboard": ("tensorboard", "train"),
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
        package, extra = _EXTRAS[module]
        raise ImportError(
            f"{purpose} needs {package} (pip install 'genhoi-kernels[{extra}]')", name=module
        ) from error
