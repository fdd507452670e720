"""Clips to try things on; see `genhoi.data.synthetic`."""
