"""GenHOI as pipelines of diffusers' kind, for users of diffusers."""
