"""GenHOI's model layer: the adapter on a Wan transformer, media in and out, masks over tokens, and
a look at where attention goes."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from genhoi.extras import needed_for

if TYPE_CHECKING:  # "as": what type checkers take for a public name
    from genhoi.bases.few_steps import few_steps as few_steps
    from genhoi.bases.wan_codec import encode_frames as encode_frames
    from genhoi.bases.wan_codec import encode_reference as encode_reference
    from genhoi.bases.wan_condition import edit_condition as edit_condition
    from genhoi.conditioning.masks import clear_first_frame as clear_first_frame
    from genhoi.conditioning.masks import token_mask as token_mask
    from genhoi.conditioning.vace import vace_context as vace_context
    from genhoi.editing.pipeline import GenHOIPipeline as GenHOIPipeline
    from genhoi.editing.plan import EditWarning as EditWarning
    from genhoi.evaluation.measure import evaluate as evaluate
    from genhoi.inspection.figure import draw_inspection as draw_inspection
    from genhoi.inspection.inspect import Inspection as Inspection
    from genhoi.inspection.inspect import inspect_clip as inspect_clip
    from genhoi.inspection.summary import summary as summary
    from genhoi.inspection.summary import summary_table as summary_table
    from genhoi.inspection.summary import write_summary as write_summary
    from genhoi.masking import Box as Box
    from genhoi.masking import Drawn as Drawn
    from genhoi.masking import Point as Point
    from genhoi.masking import cut_out as cut_out
    from genhoi.masking import track_mask as track_mask
    from genhoi.media import Clip as Clip
    from genhoi.media import fit_image as fit_image
    from genhoi.media import read_clip as read_clip
    from genhoi.media import read_image as read_image
    from genhoi.media import read_mask as read_mask
    from genhoi.media import resize_clip as resize_clip
    from genhoi.media import resize_mask as resize_mask
    from genhoi.media import write_clip as write_clip
    from genhoi.media import write_image as write_image
    from genhoi.media import write_mask as write_mask
    from genhoi.models.adapter import GenHOIAdapter as GenHOIAdapter
    from genhoi.models.adapter_config import AdapterConfig as AdapterConfig
    from genhoi.models.attach import attach as attach
    from genhoi.models.attach import attach_pipeline as attach_pipeline
    from genhoi.models.attach import attachment_of as attachment_of
    from genhoi.models.attachment import Attachment as Attachment
    from genhoi.models.wan.convert import from_official as from_official
    from genhoi.models.wan.convert import to_official as to_official
    from genhoi.pipelines.wan import WanGenHOIPipeline as WanGenHOIPipeline
    from genhoi.training.config import TrainConfig as TrainConfig
    from genhoi.training.trainer import Trainer as Trainer
    from genhoi_kernels import __version__ as __version__

# The public names of each module, which is imported on their first use: torch and diffusers take
# seconds, and diffusers, PyAV and the like are there only where an extra brought them.
_NAMES = {
    "genhoi.bases.few_steps": ["few_steps"],
    "genhoi.bases.wan_codec": ["encode_frames", "encode_reference"],
    "genhoi.bases.wan_condition": ["edit_condition"],
    "genhoi.conditioning.masks": ["clear_first_frame", "token_mask"],
    "genhoi.conditioning.vace": ["vace_context"],
    "genhoi.editing.pipeline": ["GenHOIPipeline"],
    "genhoi.editing.plan": ["EditWarning"],
    "genhoi.evaluation.measure": ["evaluate"],
    "genhoi.inspection.figure": ["draw_inspection"],
    "genhoi.inspection.inspect": ["Inspection", "inspect_clip"],
    "genhoi.inspection.summary": ["summary", "summary_table", "write_summary"],
    "genhoi.masking": ["Box", "Drawn", "Point", "cut_out", "track_mask"],
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
    "genhoi.models.attach": ["attach", "attach_pipeline", "attachment_of"],
    "genhoi.models.attachment": ["Attachment"],
    "genhoi.models.wan.convert": ["from_official", "to_official"],
    "genhoi.pipelines.wan": ["WanGenHOIPipeline"],
    "genhoi.training.config": ["TrainConfig"],
    "genhoi.training.trainer": ["Trainer"],
    "genhoi_kernels": ["__version__"],
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with needed_for(f"genhoi.{name}"):
        return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    """List what there is to use, for tab completion."""
    return [name for name in __all__ if not name.startswith("_")]
