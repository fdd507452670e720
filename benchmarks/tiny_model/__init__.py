"""The tiny model: its codec, its training, and what it is measured by."""
