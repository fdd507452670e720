"""GenHOI's model layer: the adapter on a Wan transformer, media in and out, masks over tokens, and
a look at where attention goes."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from genhoi.figures import draw_inspection
from genhoi.inspect import Inspection, inspect_clip, summary, summary_table, write_summary
from genhoi.masks import clear_first_frame, token_mask
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
    from genhoi.adapter import AdapterConfig, GenHOIAdapter
    from genhoi.convert import from_official, to_official
    from genhoi.evaluation import evaluate
    from genhoi.pipeline import GenHOIPipeline
    from genhoi.train_config import TrainConfig
    from genhoi.trainer import Trainer
    from genhoi.wan import Attachment, attach

# Imported on first use: diffusers takes seconds, and most commands do without it.
_LAZY = {
    "AdapterConfig": "genhoi.adapter",
    "Attachment": "genhoi.wan",
    "GenHOIAdapter": "genhoi.adapter",
    "GenHOIPipeline": "genhoi.pipeline",
    "TrainConfig": "genhoi.train_config",
    "Trainer": "genhoi.trainer",
    "attach": "genhoi.wan",
    "evaluate": "genhoi.evaluation",
    "from_official": "genhoi.convert",
    "to_official": "genhoi.convert",
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
