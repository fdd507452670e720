"""The rates that come with the package, beside the results they were made from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.block import TEXT_TOKENS, block_config
from benchmarks.gpu_rates import block_work, rates_text
from benchmarks.gpu_report.folder import RESULTS
from benchmarks.report import Row, read_numbers
from benchmarks.results import newest
from genhoi.editing.gpu_rates import RATES_FILE, GpuRates, measured_rates, nearest_measured
from genhoi.editing.gpus import GPU_NAMES, GPUS, find_gpu, gpu_called
from genhoi.editing.speeds import named_speeds
from genhoi.models.forward_needs import EmptyModel, Work
from genhoi_kernels.tune.shapes import find_shape

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def timed_block() -> tuple[GpuRates, Row]:
    """The rates of a GPU on which a block was timed, and the row."""
    rates = next(x for x in measured_rates() if x.traffic)
    rows = read_numbers(ROOT / rates.source / RESULTS)
    return rates, next(
        x for x in rows if (x["suite"], x["contender"]) == ("block", "genhoi.attach")
    )


def test_the_file_is_what_the_results_say() -> None:
    """`python -m benchmarks.gpu_rates` writes it anew."""
    assert RATES_FILE.read_text(encoding="utf-8") == rates_text(newest())
    for rates in measured_rates():
        assert (ROOT / rates.source / RESULTS).is_file()
        assert gpu_called(rates.title) is not None


def test_a_block_on_a_gpu_took_the_memory_that_is_counted() -> None:
    """Measured by torch's allocator on the card; counted here, on none."""
    _, row = timed_block()
    shape = find_shape(row["shape"])
    (f, h, w), (rows, columns) = shape.grid, shape.ref_grid
    config = block_config(shape) | {"_class_name": "WanTransformer3DModel", "in_channels": 36}
    needs = EmptyModel(config, dtype=torch.bfloat16, preset="paper").forward_needs(
        (f, 2 * h, 2 * w), references=[(2 * rows, 2 * columns)], text_tokens=TEXT_TOKENS
    )
    counted = needs.activation_bytes + needs.cache_bytes
    assert counted == pytest.approx(row["extra_mib"] * 2**20, rel=0.1)


def test_a_timed_block_takes_its_time_again() -> None:
    rates, row = timed_block()
    gpu = gpu_called(rates.title)
    assert gpu is not None
    speeds = named_speeds(gpu, head_dim=128, tokens=int(row["n"]), dtype=torch.bfloat16)
    assert speeds is not None and speeds.measured
    work = block_work(find_shape(row["shape"]), int(row["steps"]))
    seconds = speeds.seconds(work)
    assert seconds.total == pytest.approx(row["ms"] / 1000, rel=0.01)
    assert seconds.attention > seconds.rest > seconds.products > 0


def test_gpus_by_name() -> None:
    assert find_gpu("h100") == find_gpu("H100-80GB") and find_gpu("cuda") is None
    assert all(find_gpu(name) in GPUS for name in GPU_NAMES)
    assert len({gpu.name for gpu in GPUS}) == len(GPUS)
    for gpu in GPUS:
        assert 20e9 < gpu.memory_bytes < 300e9 and 50e12 < gpu.peak < 3e15
    assert gpu_called("NVIDIA H200") == find_gpu("h200")


@pytest.mark.parametrize(
    "name, nearest, measured",
    [("h200", "h200", True), ("h100", "h100-80gb", True), ("a100", "h100-80gb", False)],
)
def test_a_gpu_takes_the_rates_of_the_one_most_like_it(
    name: str, nearest: str, measured: bool
) -> None:
    gpu = find_gpu(name)
    assert gpu is not None
    rates, its = nearest_measured(gpu)
    assert its == find_gpu(nearest)
    speeds = named_speeds(gpu, head_dim=128, tokens=32760, dtype=torch.bfloat16)
    assert speeds is not None and speeds.measured == measured
    assert ("not measured" in speeds.source) != measured and rates.source in speeds.source
    share = gpu.peak / its.peak
    assert speeds.products == pytest.approx(share * rates.products)
    assert speeds.seconds(Work(products=speeds.products)).total == pytest.approx(1)
    assert named_speeds(gpu, head_dim=128, tokens=1, dtype=torch.float32) is None


def test_the_nearest_shape_is_taken() -> None:
    rates = next(x for x in measured_rates() if x.title == "NVIDIA H200")
    assert rates.attention_at(64, 10).head_dim == 64
    assert rates.attention_at(128, 80000).tokens == 75600
    assert rates.attention_at(128, 30000).tokens == 32760
