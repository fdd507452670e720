"""Triton kernels of the op, and their launches; imported only where triton is installed."""
