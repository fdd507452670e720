"""GenHOI on pretrained video models: the adapter, and what attaches it to each."""
