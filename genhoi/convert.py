"""Weights of the authors' release <-> a diffusers Wan transformer and an adapter."""

from genhoi.models.wan.convert import from_official, infer_config, load_weights, to_official

__all__ = ["from_official", "infer_config", "load_weights", "to_official"]
