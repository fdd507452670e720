"""GenHOI's model layer: the adapter on a Wan transformer, media in and out, masks over tokens, and
a look at where attention goes."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from genhoi._extras import needed_for

if TYPE_CHECKING:
    from genhoi.conditioning.masks import clear_first_frame, token_mask
    from genhoi.editing.pipeline import GenHOIPipeline
    from genhoi.evaluation.measure import evaluate
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
    from genhoi.models.adapter import GenHOIAdapter
    from genhoi.models.adapter_config import AdapterConfig
    from genhoi.models.attach import attach
    from genhoi.models.attachment import Attachment
    from genhoi.models.wan.convert import from_official, to_official
    from genhoi.training.config import TrainConfig
    from genhoi.training.trainer import Trainer
    from genhoi_kernels import __version__

# The public names of each module, which is imported on their first use: torch and diffusers take
# seconds, and diffusers, PyAV and the like are there only where an extra brought them.
_NAMES = {
    "genhoi.conditioning.masks": ["clear_first_frame", "token_mask"],
    "genhoi.editing.pipeline": ["GenHOIPipeline"],
    "genhoi.evaluation.measure": ["evaluate"],
    "genhoi.inspection.figure": ["draw_inspection"],
    "genhoi.inspection.inspect": ["Inspection", "inspect_clip"],
    "genhoi.inspection.summary": ["summary", "summary_table", "write_summary"],
    "genhoi.media": [
        "Clip",
        "fit_image",
        "read_clip",
        "read_image",
        "read_mask",
        "resize_clip",
        "resize_mask",
        "write_clip",
        "write_image",
        "write_mask",
    ],
    "genhoi.models.adapter": ["GenHOIAdapter"],
    "genhoi.models.adapter_config": ["AdapterConfig"],
    "genhoi.models.attach": ["attach"],
    "genhoi.models.attachment": ["Attachment"],
    "genhoi.models.wan.convert": ["from_official", "to_official"],
    "genhoi.training.config": ["TrainConfig"],
    "genhoi.training.trainer": ["Trainer"],
    "genhoi_kernels": ["__version__"],
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

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
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with needed_for(f"genhoi.{name}"):
        return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
