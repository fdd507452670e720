"""What can be known of the GPU kernels without a GPU: compiled ahead of time, counted, bounded.

`python -m benchmarks.static.compile_table` compiles every shipped Triton configuration;
`genhoi bench --static` counts the main loops and sets them beside FlashAttention's.
"""
