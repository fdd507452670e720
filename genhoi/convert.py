"""Weights of the authors' release <-> a diffusers Wan transformer and an adapter."""

from genhoi.models.wan.convert import from_official, infer_config, to_official
from genhoi.models.wan.vace.convert import GatesWarning
from genhoi.models.wan.vace.files import ReleaseParts, is_vace_release, join_files
from genhoi.models.weight_files import load_weights

__all__ = [
    "GatesWarning",
    "ReleaseParts",
    "from_official",
    "infer_config",
    "is_vace_release",
    "join_files",
    "load_weights",
    "to_official",
]
