"""GenHOI on a diffusers Wan transformer (docs/model_layer.md)."""
