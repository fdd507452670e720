"""GenHOI's model layer: the adapter on a Wan transformer, media in and out, masks over tokens, and
a look at where attention goes."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from genhoi._extras import needed_for

if TYPE_CHECKING:
    from genhoi.conditioning.masks import clear_first_frame, token_mask
    from genhoi.editing.pipeline import GenHOIPipeline
    from genhoi.evaluation.evaluation import evaluate
    from genhoi.inspection.figure import draw_inspection
    from genhoi.inspection.inspect import (
        Inspection,
        inspect_clip,
        summary,
        summary_table,
        write_summary,
    )
    from genhoi.media.media import (
        Clip,
        fit_image,
        read_clip,
        read_image,
        read_mask,
        resize_clip,
        resize_mask,
        write_clip,
        write_image,
        write_mask,
    )
    from genhoi.models.adapter import AdapterConfig, GenHOIAdapter
    from genhoi.models.wan.attach import Attachment, attach
    from genhoi.models.wan.convert import from_official, to_official
    from genhoi.training.config import TrainConfig
    from genhoi.training.trainer import Trainer
    from genhoi_kernels import __version__

# Imported on first use: torch and diffusers take seconds, and diffusers, PyAV and the like are
# there only where an extra brought them.
_MODULES = {
    "AdapterConfig": "genhoi.models.adapter",
    "Attachment": "genhoi.models.wan.attach",
    "Clip": "genhoi.media.media",
    "GenHOIAdapter": "genhoi.models.adapter",
    "GenHOIPipeline": "genhoi.editing.pipeline",
    "Inspection": "genhoi.inspection.inspect",
    "TrainConfig": "genhoi.training.config",
    "Trainer": "genhoi.training.trainer",
    "__version__": "genhoi_kernels",
    "attach": "genhoi.models.wan.attach",
    "clear_first_frame": "genhoi.conditioning.masks",
    "draw_inspection": "genhoi.inspection.figure",
    "evaluate": "genhoi.evaluation.evaluation",
    "fit_image": "genhoi.media.media",
    "from_official": "genhoi.models.wan.convert",
    "inspect_clip": "genhoi.inspection.inspect",
    "read_clip": "genhoi.media.media",
    "read_image": "genhoi.media.media",
    "read_mask": "genhoi.media.media",
    "resize_clip": "genhoi.media.media",
    "resize_mask": "genhoi.media.media",
    "summary": "genhoi.inspection.inspect",
    "summary_table": "genhoi.inspection.inspect",
    "to_official": "genhoi.models.wan.convert",
    "token_mask": "genhoi.conditioning.masks",
    "write_clip": "genhoi.media.media",
    "write_image": "genhoi.media.media",
    "write_mask": "genhoi.media.media",
    "write_summary": "genhoi.inspection.inspect",
}

__all__ = [
    "AdapterConfig",
    "Attachment",
    "Clip",
    "GenHOIAdapter",
    "GenHOIPipeline",
    "Inspection",
    "TrainConfig",
    "Trainer",
    "__version__",
    "attach",
    "clear_first_frame",
    "draw_inspection",
    "evaluate",
    "fit_image",
    "from_official",
    "inspect_clip",
    "read_clip",
    "read_image",
    "read_mask",
    "resize_clip",
    "resize_mask",
    "summary",
    "summary_table",
    "to_official",
    "token_mask",
    "write_clip",
    "write_image",
    "write_mask",
    "write_summary",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with needed_for(f"genhoi.{name}"):
        return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
