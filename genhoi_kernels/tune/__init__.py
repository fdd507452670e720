"""Measures which backend is the fastest on this GPU, and remembers it for later calls.

``python -m genhoi_kernels.tune``, or ``genhoi tune``, writes the user's table of
``backends.preferences``. It needs torch alone.
"""
