"""GenHOI's model layer: the adapter on a Wan transformer, media in and out, masks over tokens, and
a look at where attention goes."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from genhoi.conditioning.masks import clear_first_frame, token_mask
from genhoi.inspection.figure import draw_inspection
from genhoi.inspection.inspect import Inspection, inspect_clip
from genhoi.inspection.summary import summary, summary_table, write_summary
from genhoi.media import (
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
from genhoi_kernels import __version__

if TYPE_CHECKING:
    from genhoi.editing.pipeline import GenHOIPipeline
    from genhoi.evaluation.measure import evaluate
    from genhoi.models.adapter import GenHOIAdapter
    from genhoi.models.adapter_config import AdapterConfig
    from genhoi.models.attach import attach
    from genhoi.models.attachment import Attachment
    from genhoi.models.wan.convert import from_official, to_official
    from genhoi.training.config import TrainConfig
    from genhoi.training.trainer import Trainer

# Imported on first use: diffusers takes seconds, and most commands do without it.
_LAZY = {
    "AdapterConfig": "genhoi.models.adapter_config",
    "Attachment": "genhoi.models.attachment",
    "GenHOIAdapter": "genhoi.models.adapter",
    "GenHOIPipeline": "genhoi.editing.pipeline",
    "TrainConfig": "genhoi.training.config",
    "Trainer": "genhoi.training.trainer",
    "attach": "genhoi.models.attach",
    "evaluate": "genhoi.evaluation.measure",
    "from_official": "genhoi.models.wan.convert",
    "to_official": "genhoi.models.wan.convert",
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
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
