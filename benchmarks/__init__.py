"""The op beside its peers: what it costs, what the machine allows, what others cost.

`genhoi bench` runs the suites; `pytest benchmarks/` runs the same cases through pytest-benchmark.
"""
