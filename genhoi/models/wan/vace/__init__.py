"""GenHOI's VACE version on a diffusers Wan VACE transformer (docs/model_layer.md)."""
