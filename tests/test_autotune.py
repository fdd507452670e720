"""Configurations: the table, and autotuning with a stand-in for the clock."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from genhoi_kernels.triton_kernels import autotune, configs
from genhoi_kernels.triton_kernels.candidates import candidates
from genhoi_kernels.triton_kernels.configs import ARCHS, HEAD_DIMS, KERNELS, Config

KEY = ("sm_80", "forward", 2, 64)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_every_entry_is_there_and_says_how_it_was_chosen(
    arch: str, kernel: str, head_dim: int
) -> None:
    entry = configs.table()[arch, kernel, 2, head_dim]
    assert entry.block_m % 64 == 0 or kernel == "gate_backward"  # tiles of the mask gate
    assert entry.how.startswith("compiled with triton") and "not timed" in entry.how


def test_like_architectures_share_and_unknown_ones_are_cautious() -> None:
    assert configs.config("sm_120", "forward", 2, 128) == configs.config("sm_86", "forward", 2, 128)
    assert configs.config("sm_80", "forward", 2, 16) == configs.config("sm_80", "forward", 2, 32)
    assert configs.config("sm_999", "forward", 2, 128).how.startswith("heuristic")


@pytest.fixture
def on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder, a device's name, and nothing measured yet."""
    monkeypatch.setenv("GENHOI_CACHE", str(tmp_path))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "Some GPU")
    monkeypatch.setattr(autotune, "_tuned", set())
    monkeypatch.setattr(configs, "_measured", {})
    return tmp_path


def clock(monkeypatch: pytest.MonkeyPatch, times: dict[int, float]) -> list[int]:
    """Milliseconds by the number of keys of a block; what has none there doesn't run."""
    timed: list[int] = []

    def time(launch: Any) -> float:
        timed.append(launch)
        return times[launch]

    monkeypatch.setattr(autotune, "_milliseconds", time)
    return timed


def test_the_fastest_is_kept_and_read_again(
    on_a_gpu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make() -> Any:
        return configs.config(*KEY).block_n

    timed = clock(monkeypatch, {64: 2.0, 32: 1.0})  # blocks of 16 keys raise KeyError
    with pytest.warns(UserWarning, match="left out"):
        autotune.tune(KEY, make)
    assert len(timed) == len(candidates("forward", "sm_80"))
    assert configs.config(*KEY).block_n == 32 and configs.config(*KEY).how.startswith("measured")
    (file,) = on_a_gpu.iterdir()
    assert json.loads(file.read_text())["entries"][0]["config"]["block_n"] == 32

    # Another process reads it and times nothing.
    monkeypatch.setattr(autotune, "_tuned", set())
    monkeypatch.setattr(configs, "_measured", {})
    timed.clear()
    autotune.tune(KEY, make)
    assert not timed and configs.config(*KEY).block_n == 32


def test_nothing_runs(on_a_gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table's entry stays, and no file is written."""
    clock(monkeypatch, {})
    before = configs.config(*KEY)
    with pytest.warns(UserWarning, match="left out"):
        autotune.tune(KEY, lambda: 0)  # type: ignore[arg-type, return-value]
    assert configs.config(*KEY) == before and not list(on_a_gpu.iterdir())


def test_a_malformed_file_is_named_and_ignored(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"entries": [{"arch": 1}]}')
    with pytest.warns(UserWarning, match=r"x\.json is malformed"):
        assert autotune.read(path) == {}


def test_write_adds_to_what_is_there(tmp_path: Path) -> None:
    path, other = tmp_path / "x.json", ("sm_90", "keys", 2, 64)
    autotune.write(path, {KEY: Config(64, 32, 16, 4, 2, how="a")})
    autotune.write(path, {other: Config(64, 64, 16, 8, 2, how="b")})
    assert set(autotune.read(path)) == {KEY, other}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
