"""Which family of models a transformer belongs to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from genhoi.models.protocol import VideoModel

__all__ = ["empty_model", "family_of", "model_of"]

# Module and class of each family; the first that takes a transformer has it.
_FAMILIES = (
    ("genhoi.models.wan.given", "WanTextModel"),
    ("genhoi.models.wan.given", "WanTokensModel"),
    ("genhoi.models.wan.model", "WanModel"),
    ("genhoi.models.wan.vace.model", "VaceModel"),
    ("genhoi.models.wan.animate", "WanAnimateModel"),
)
_WANTED = "WanTransformer3DModel, WanVACETransformer3DModel or WanAnimateTransformer3DModel"


def model_of(transformer: Any) -> VideoModel:
    """Find the family of a transformer, and make the model around it.

    Raises:
        TypeError: no family takes it.
    """
    # What torch.compile returns stands for the transformer, and calls it.
    transformer = getattr(transformer, "_orig_mod", transformer)
    # All classes that it is an instance of, for FSDP2 makes a subclass of the model's own.
    names = [known.__name__ for known in type(transformer).__mro__]
    config = getattr(transformer, "config", {})
    for family in _families():
        if any(family.takes(name, config) for name in names):
            return family(transformer)
    raise TypeError(f"transformer: got {names[0]}, wanted a diffusers {_WANTED}")


def empty_model(config: Mapping[str, Any]) -> VideoModel:
    """Make a model with fresh weights on the current device.

    Args:
        config: as diffusers saves it, with its ``_class_name``.

    Raises:
        TypeError: no family takes it.
    """
    return family_of(config).empty(config)


def family_of(config: Mapping[str, Any]) -> type[VideoModel]:
    """Find the family of a transformer by its configuration; nothing is made.

    Args:
        config: as diffusers saves it, with its ``_class_name``.

    Raises:
        TypeError: no family takes it.
    """
    name = str(config.get("_class_name"))
    for family in _families():
        if family.takes(name, config):
            return family
    raise TypeError(f"config: got one of a {name}, wanted one of a {_WANTED}")


def _families() -> Iterator[type[VideoModel]]:
    for module, name in _FAMILIES:
        yield getattr(import_module(module), name)
