"""Configurations: the table, and autotuning with a stand-in for the clock."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.cases import Case, check_budget, device_of, make_case, run, skip_unless_supported

pytest.importorskip("triton", reason="triton is not installed")

from genhoi_kernels.backends.triton import backend
from genhoi_kernels.backends.triton.tuning import autotune, compiler, configs
from genhoi_kernels.backends.triton.tuning.candidates import candidates
from genhoi_kernels.backends.triton.tuning.configs import ARCHS, HEAD_DIMS, KERNELS, Config, Key

KEY = Key("sm_80", "forward", 2, 64, compiler.version())
UNMASKED = ("keys", "gate_backward", "delta")  # launches that look at no tile of the mask gate


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_every_kernel_has_an_entry(arch: str, kernel: str, head_dim: int) -> None:
    assert Key(arch, kernel, 2, head_dim, "3.9") in configs.table()


def test_every_entry_says_how_it_was_chosen() -> None:
    for key, entry in configs.table().items():
        assert entry.block_m % 64 == 0 or key.kernel in UNMASKED  # tiles of the mask gate
        compiled = entry.how.startswith(f"compiled with triton {key.triton}.")
        assert (compiled and "not timed" in entry.how) != entry.how.startswith("measured on")
        assert f"triton {key.triton}." in entry.how


def test_entries_are_of_one_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """The running one's, else the nearest older one's, else the nearest newer one's."""

    def entry(*versions: str, running: str) -> int | None:
        entries = {KEY._replace(triton=v): Config(64, i, 16, 4, 1) for i, v in enumerate(versions)}
        nearest = configs.nearest(entries, KEY._replace(triton=running))
        return None if nearest is None else nearest.block_n

    assert entry("3.6", "3.7", "3.9", running="3.7") == 1
    assert entry("3.6", "3.7", "3.9", running="3.8") == 1
    assert entry("3.9", "3.10", running="3.11") == 1, "3.10 is newer than 3.9"
    assert entry("3.10", "3.9", running="3.6") == 1
    assert entry(running="3.6") is None
    other = {KEY._replace(kernel="keys"): Config(64, 32, 16, 4, 1)}
    assert configs.nearest(other, KEY) is None

    monkeypatch.setattr(compiler, "version", lambda: "3.6")
    assert configs.config("sm_90", "forward", 2, 128).how.startswith("measured on an H100")
    assert configs.config("sm_90", "forward", 2, 64).how.startswith("compiled with triton 3.9")


def test_entries_are_written_as_they_are_read() -> None:
    """And one a line, so that a change is one line's."""
    text = configs.TABLE.read_text()
    data = json.loads(text)
    assert configs.text_of(data["made_by"], configs.parse_entries(data)) == text
    assert len(text.splitlines()) == len(data["entries"]) + 5
    assert json.loads(configs.text_of("nobody", {})) == {"made_by": "nobody", "entries": []}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("block_m", [16, 32, 96, 0])
def test_row_blocks_are_whole_tiles_of_the_mask_gate(
    kernel: str, block_m: int, tmp_path: Path
) -> None:
    """Smaller ones would read no tile's flags, and a masked call would ignore all references."""
    path, key = tmp_path / "x.json", KEY._replace(kernel=kernel)
    path.write_text(configs.text_of("hand", {key: Config(block_m, 32, 16, 4, 1)}))
    if kernel in UNMASKED:
        assert autotune.read(path)[key].block_m == block_m
        return
    sentence = rf"block_m of {kernel} on sm_80, head dim 64: got {block_m}, wanted a multiple of 64"
    with pytest.raises(ValueError, match=sentence):
        configs.parse_entries(json.loads(path.read_text()))
    with pytest.warns(UserWarning, match=rf"x\.json is malformed and ignored: {sentence}"):
        assert autotune.read(path) == {}


def test_the_kernel_refuses_row_blocks_below_a_tile() -> None:
    """Whatever gave it the configuration."""
    case = Case(rows=70, dim=32, heads=1, lengths=(9,), mask="random")
    skip_unless_supported("triton", case.call("triton"))
    arch = backend.architecture(device_of("triton"))
    key = configs.key_of(arch, "forward", 4, 32)
    with (
        configs.trying(key, Config(32, 64, 32, 4, 1)),
        pytest.raises(Exception, match="BLOCK must be a multiple"),
    ):
        run(case, "triton", torch.float32, make_case(case))


def test_like_architectures_share_and_unknown_ones_are_cautious() -> None:
    assert configs.config("sm_120", "forward", 2, 128) == configs.config("sm_86", "forward", 2, 128)
    assert configs.config("sm_80", "forward", 2, 16) == configs.config("sm_80", "forward", 2, 32)
    assert configs.config("sm_999", "forward", 2, 128).how.startswith("heuristic")


@pytest.fixture
def on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder, a device's name, and nothing measured yet."""
    monkeypatch.setenv("GENHOI_CACHE", str(tmp_path))
    names = {0: "Some GPU", 1: "Another GPU"}
    monkeypatch.setattr(configs, "device_name", lambda device: names[device.index])
    monkeypatch.setattr(autotune, "_tuned", set())
    monkeypatch.setattr(configs, "_measured", {})
    return tmp_path


GPU = torch.device("cuda", 0)


def block_n(device: str = "Some GPU") -> int:
    """The block of KEY's configuration on a GPU."""
    return configs.config(*KEY[:4], device).block_n


def clock(monkeypatch: pytest.MonkeyPatch, times: dict[int, float]) -> list[int]:
    """Milliseconds by the number of keys of a block; what has none there doesn't run."""
    timed: list[int] = []

    def time(launch: Any, best: float) -> float:
        timed.append(launch)
        return times[launch]

    monkeypatch.setattr(autotune, "_milliseconds", time)
    return timed


def test_the_fastest_is_kept_and_read_again(
    on_a_gpu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make() -> Any:
        return block_n()

    timed = clock(monkeypatch, {64: 2.0, 32: 1.0})  # blocks of 16 keys raise KeyError
    heard: list[tuple[Key, int, float | None]] = []

    def listen(key: Key, config: Config, ms: float | None) -> None:
        heard.append((key, config.block_n, ms))

    with autotune.told(listen), pytest.warns(UserWarning, match="left out"):
        autotune.tune(KEY, GPU, make)
    assert len(timed) == len(heard) == len(candidates("forward", "sm_80"))
    assert set(heard) == {(KEY, 64, 2.0), (KEY, 32, 1.0), (KEY, 16, None)}
    assert configs.config(*KEY[:4], "Some GPU").how.startswith("measured")
    assert block_n() == 32
    (file,) = on_a_gpu.iterdir()
    assert json.loads(file.read_text())["entries"][0]["config"]["block_n"] == 32

    # Another process reads it and times nothing.
    monkeypatch.setattr(autotune, "_tuned", set())
    monkeypatch.setattr(configs, "_measured", {})
    timed.clear()
    autotune.tune(KEY, GPU, make)
    assert not timed and block_n() == 32


def test_two_gpus_of_one_architecture_share_nothing(
    on_a_gpu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is measured, by the name of the GPU that the tensors are on, not of the current one."""
    table = configs.config(*KEY[:4]).block_n
    for device, times, best in (
        (GPU, {64: 1.0, 32: 2.0}, 64),
        (torch.device("cuda", 1), {64: 2.0, 32: 1.0}, 32),
    ):
        timed = clock(monkeypatch, times)
        name = configs.device_name(device)
        assert block_n(name) == table, "nothing was measured on it yet"
        with pytest.warns(UserWarning, match="left out"):
            autotune.tune(KEY, device, lambda name=name: block_n(name))  # type: ignore[misc]
        assert timed and block_n(name) == best
    assert (block_n("Some GPU"), block_n("Another GPU")) == (64, 32)
    assert configs.config(*KEY[:4]).block_n == table, "no GPU, nothing measured"
    files = {path.name.split("-triton-")[0] for path in on_a_gpu.iterdir()}
    assert files == {"Some-GPU", "Another-GPU"}


def test_another_triton_shares_nothing(on_a_gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best configuration of one release takes twice the time in the next."""
    import triton

    before = autotune.table_path(GPU)
    autotune.write(before, {KEY: Config(64, 32, 16, 4, 2)})
    monkeypatch.setattr(triton, "__version__", "3.99.1")
    after = autotune.table_path(GPU)
    assert after != before and "3.99.1" in after.name and autotune.read(after) == {}


def test_a_call_is_tuned_on_its_own_tensors_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on the current one."""
    tuned: list[tuple[Key, torch.device]] = []
    monkeypatch.setenv("GENHOI_AUTOTUNE", "1")
    monkeypatch.setattr(autotune, "tune", lambda key, device, make: tuned.append((key, device)))
    x = SimpleNamespace(
        device=torch.device("cuda", 1), shape=(1, 4096, 2, 64), element_size=lambda: 2
    )
    autotune.tune_first_call("forward", x, lambda: None, arch="sm_80")  # type: ignore[arg-type, return-value]
    assert tuned == [(KEY, torch.device("cuda", 1))]


def test_nothing_runs(on_a_gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table's entry stays, and no file is written."""
    clock(monkeypatch, {})
    before = configs.config(*KEY[:4])
    with pytest.warns(UserWarning, match="left out"):
        autotune.tune(KEY, GPU, lambda: 0)  # type: ignore[arg-type, return-value]
    assert configs.config(*KEY[:4]) == before and not list(on_a_gpu.iterdir())


def test_a_malformed_file_is_named_and_ignored(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"entries": [{"arch": 1}]}')
    with pytest.warns(UserWarning, match=r"x\.json is malformed"):
        assert autotune.read(path) == {}


def test_write_adds_to_what_is_there(tmp_path: Path) -> None:
    path, other = tmp_path / "x.json", Key("sm_90", "keys", 2, 64, "3.6")
    autotune.write(path, {KEY: Config(64, 32, 16, 4, 2, how="a")})
    autotune.write(path, {other: Config(64, 64, 16, 8, 2, how="b")})
    assert set(autotune.read(path)) == {KEY, other}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_every_candidate_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its time, or None where it did not run; each is timed knowing the best so far."""
    every = [Config(64, keys, 16, 4, 1) for keys in (64, 32, 16, 8)]
    times, bests, told = {64: 3.0, 32: 2.0, 8: 5.0}, [], []

    def time(launch: Any, best: float) -> float:
        bests.append(best)
        return times[launch]  # none for 16

    def seen(config: Config, taken: float | None) -> None:
        told.append((config.block_n, taken))

    with pytest.warns(UserWarning, match="left out"):
        best = autotune.fastest(
            every,
            lambda config: config.block_n,  # type: ignore[arg-type, return-value]
            time=time,
            seen=seen,
        )
    assert best is not None and best.block_n == 32
    assert told == [(64, 3.0), (32, 2.0), (16, None), (8, 5.0)]
    assert bests == [math.inf, 3.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("each", "best", "samples"),
    [(10.0, 9.0, 4), (30.0, 29.0, 3), (0.01, 1.0, autotune.MAXIMUM_SAMPLES), (21.0, 10.0, 1)],
    ids=["budget", "long", "short", "hopeless"],
)
def test_how_long_a_candidate_is_timed(each: float, best: float, samples: int) -> None:
    taken: list[float] = []

    def sample() -> float:
        taken.append(each)
        return each

    assert autotune.median_of(sample, best) == each
    assert len(taken) == samples


@pytest.mark.parametrize("gate", [None, "token"])
def test_every_kernel_is_tuned(gate: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its first run, with a launch that the configuration of the moment makes."""
    tuned: dict[str, set[int]] = {}

    def tune(kernel: str, q: torch.Tensor, launch: Any, *, arch: str) -> None:
        for warps in (4, 8):
            with configs.trying(
                configs.key_of(arch, kernel, q.element_size(), q.shape[-1]),
                Config(64, 64, 32, warps, 1),
            ):
                tuned.setdefault(kernel, set()).add(launch().config.num_warps)

    monkeypatch.setattr(autotune, "tune_first_call", tune)
    case = Case(rows=70, dim=32, heads=1, lengths=(9,), bias=(0.5,), gate=gate)
    skip_unless_supported("triton", case.call("triton"))
    check_budget(case, "triton")
    kernels = {*KERNELS} - {"delta" if gate else "gate_backward"}
    assert tuned == {kernel: {4, 8} for kernel in kernels}
