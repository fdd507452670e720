"""`python -m benchmarks`: the suite's command, as `genhoi bench` without the model layer."""

from benchmarks.cli import bench

if __name__ == "__main__":
    bench(prog_name="python -m benchmarks")
