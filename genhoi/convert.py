"""Weights of the authors' release <-> a diffusers Wan transformer and an adapter."""

from genhoi.models.wan.convert import from_official, infer_config, to_official
from genhoi.models.weight_files import load_weights

__all__ = ["from_official", "infer_config", "load_weights", "to_official"]
