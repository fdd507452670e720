"""Block sizes, warps and pipeline stages of the Triton kernels: the shipped table, and its makers."""
