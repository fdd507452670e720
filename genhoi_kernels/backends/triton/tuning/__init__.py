"""Block sizes, warps and pipeline stages of the Triton kernels: the table, and its makers."""
