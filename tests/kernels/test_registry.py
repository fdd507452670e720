"""Choosing a backend, and saying why."""

from __future__ import annotations

import dataclasses
import inspect
import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import genhoi_kernels as gk
from genhoi_kernels import files, notices
from genhoi_kernels.backends import cpu, eager, native, preferences, registry
from genhoi_kernels.backends.flash import backend as flash
from genhoi_kernels.backends.flash.adapter import Generation
from genhoi_kernels.backends.preferences import Choice, Question
from genhoi_kernels.backends.triton import backend as triton

USABLE = [status.name for status in gk.backends() if status.usable]


def attention_call(**changes: object) -> gk.AttentionCall:
    fields = dict(
        device=torch.device("cpu"),
        dtype=torch.float32,
        head_dim=16,
        ref_lengths=(),
        rope=None,
        ref_rope=None,
        gate_mode="none",
        scale=0.25,
        needs_grad=False,
    )
    return gk.AttentionCall(**(fields | changes))


def test_every_status_has_a_sentence() -> None:
    for status in gk.backends():
        assert len(status.reason) > 10
    assert "eager" in USABLE


@pytest.mark.native
@pytest.mark.skipif(not native.module, reason=native.missing_reason)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dtype": torch.float64}, "not torch.float64"),
        ({"device": torch.device("meta")}, "not on meta"),
        ({"head_dim": 12}, "head dim 12"),
        ({"head_dim": 264}, "head dim 264"),
    ],
)
def test_cpu_refuses_in_words(change: dict, words: str) -> None:
    call = attention_call(**change)
    assert words in (gk.supports("cpu", call) or "")
    with pytest.raises(ValueError, match=f"backend: 'cpu' cannot take this call: .*{words}"):
        registry.pick(call, "cpu")
    # Triton's interpreter, where it is on, takes more head dims.
    taken = [name for name in ("triton", "eager") if gk.supports(name, call) is None]
    assert registry.pick(call, None) is registry.pick(call, taken[0])


@pytest.mark.native
@pytest.mark.skipif(not native.module, reason=native.missing_reason)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cpu_takes_all_it_promises(dtype: torch.dtype) -> None:
    """Other tests skip what a backend refuses: it must not refuse more than it says."""
    for head_dim in range(8, 257, 8):
        assert gk.supports("cpu", attention_call(dtype=dtype, head_dim=head_dim)) is None
        rope_call = gk.RopeCall(torch.device("cpu"), dtype, head_dim)
        assert gk.supports("cpu", rope_call) is None


@pytest.mark.native
@pytest.mark.skipif(not native.module, reason=native.missing_reason)
def test_cpu_comes_first() -> None:
    assert registry.pick(attention_call(), None) is registry.pick(attention_call(), "cpu")


@pytest.fixture
def every_warning_anew() -> Iterator[None]:
    """As in a new process."""
    registry.forget()
    notices.forget()
    yield
    registry.forget()
    notices.forget()


@pytest.mark.usefixtures("every_warning_anew")
def test_plain_pytorch_that_nobody_asked_for_is_a_warning() -> None:
    """Once for each reason; it says what is large, why, what to ask, and where the call is."""
    x = torch.randn(1, 6, 2, 16, dtype=torch.float64)
    refs = torch.randn(1, 4, 2, 16, dtype=torch.float64)
    with pytest.warns(gk.EagerFallbackWarning) as caught:
        gk.reference_attention(x, x, x, refs, refs)
        gk.reference_attention(x, x, x)
        gk.reference_attention(x[:, :3], x, x)
    (warning,) = caught
    words = str(warning.message)
    assert "N x (Nk + M) tensors, here 6 x 10 for each of 2 heads" in words
    assert gk.explain(x, x, x)["cpu"] in words
    assert "genhoi_kernels.explain" in words and "backend='eager'" in words
    assert warning.filename == __file__
    with pytest.warns(gk.EagerFallbackWarning):  # another reason
        gk.reference_attention(*torch.randn(3, 1, 6, 2, 264))


@pytest.mark.usefixtures("every_warning_anew")
def test_no_warning_where_a_kernel_or_plain_pytorch_was_asked_for() -> None:
    x = torch.randn(1, 6, 2, 16, dtype=torch.float64)
    rope = gk.VideoRope((1, 2, 3), head_dim=16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gk.reference_attention(x, x, x, backend="eager")
        gk.apply_rope(x, rope)  # no tensor larger than x
        gk.explain(x, x, x)
        if USABLE != ["eager"]:
            gk.reference_attention(*(x.float() for _ in range(3)))


def test_what_was_picked_is_kept_until_told(monkeypatch: pytest.MonkeyPatch) -> None:
    call = attention_call(device=torch.device("meta"))
    registry.forget()
    assert registry.pick(call, None) is eager
    monkeypatch.setattr(cpu, "unavailable", lambda: None)
    monkeypatch.setattr(cpu, "supports", lambda call: None)
    assert registry.pick(call, None) is eager
    registry.forget()
    assert registry.pick(call, None) is cpu
    registry.forget()


def test_explain_takes_the_arguments_of_the_op() -> None:
    q = torch.zeros(1, 4, 2, 12)
    answers = gk.explain(q, q, q)
    assert list(answers) == [status.name for status in gk.backends()]
    assert answers["eager"] is None
    assert answers["cpu"] is not None
    with pytest.raises(ValueError, match="k: got shape"):
        gk.explain(q, q[..., :1, :], q)
    with pytest.raises(TypeError, match="unexpected keyword argument 'backend'"):
        gk.explain(q, q, q, backend="cpu")


def test_explain_shows_its_arguments() -> None:
    shown = inspect.signature(gk.explain).parameters
    taken = inspect.signature(gk.reference_attention).parameters
    assert set(taken) - set(shown) == {"return_lse", "return_gate_sum", "backend"}
    assert all(taken[name] == parameter for name, parameter in shown.items())


def test_an_unknown_backend_lists_the_known() -> None:
    q = torch.zeros(1, 4, 2, 16)
    with pytest.raises(
        ValueError, match=r"backend: got 'cuda9', wanted one of cpu, triton, flash, cuda, eager"
    ):
        gk.reference_attention(q, q, q, backend="cuda9")


# ------------------------------------------------------------------------ choices between able ones

H100 = Question("sm_90", "H100", "bfloat16", 128, 32760, True, 3)
FLASH = Generation


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the user's table is to be, in a folder that is not there yet."""
    monkeypatch.setenv("GENHOI_CACHE", str(tmp_path / "new" / "cache"))
    preferences.user_table.cache_clear()
    yield preferences.table_path()
    preferences.user_table.cache_clear()
    registry.forget()


def on_a_gpu(monkeypatch: pytest.MonkeyPatch, question: Question, refusing: str = "") -> None:
    """Calls of CUDA tensors are about ``question``; Triton and flash take them, but one."""
    monkeypatch.setattr(registry, "question", lambda call: question)
    for backend, name in ((triton, "triton"), (flash, "flash")):
        monkeypatch.setattr(backend, "unavailable", lambda: None)
        reason = "not today" if name == refusing else None
        monkeypatch.setattr(backend, "supports", lambda call, reason=reason: reason)
    registry.forget()


def gpu_call() -> gk.AttentionCall:
    return attention_call(device=torch.device("cuda"), dtype=torch.bfloat16, head_dim=128)


@pytest.mark.parametrize(
    ("change", "first"),
    [
        ({}, ("cuda", "flash", "triton")),
        ({"dtype": "float16"}, ("cuda", "flash", "triton")),
        ({"rows": 4095}, ("cuda", "flash", "triton")),
        ({"arch": "sm_80", "flash": 2}, ("cuda", "flash", "triton")),
        ({"arch": "sm_80", "flash": None}, ("cuda", "flash", "triton")),
        ({"arch": "sm_80", "flash": 2, "rows": 9}, ("cuda", "flash", "triton")),
        ({"arch": "sm_80", "flash": 2, "training": False}, ("cuda", "flash", "triton")),
        ({"arch": "sm_80", "flash": None, "training": False}, ("cuda", "flash", "triton")),
        (
            {"arch": "sm_80", "flash": None, "training": False, "rows": 9},
            ("cuda", "flash", "triton"),
        ),
        ({"arch": "sm_80", "flash": FLASH.TORCH_FLASH}, ("cuda", "flash", "triton")),
        ({"arch": "sm_80", "flash": FLASH.TORCH_CUDNN}, ("cuda", "flash", "triton")),
        # What was measured on an H200.
        ({"training": False}, ("cuda", "flash", "triton")),
        ({"training": False, "dtype": "float16"}, ("cuda", "flash", "triton")),
        ({"training": False, "head_dim": 64}, ("cuda", "flash", "triton")),
        ({"training": False, "flash": FLASH.TORCH_CUDNN}, ("cuda", "flash", "triton")),
        ({"training": False, "flash": FLASH.TORCH_FLASH}, ("cuda", "triton", "flash")),
        ({"training": False, "flash": None}, ("cuda", "triton", "flash")),
        ({"flash": FLASH.TORCH_CUDNN}, ("cuda", "flash", "triton")),
        ({"flash": FLASH.TORCH_FLASH, "head_dim": 64}, ("cuda", "triton", "flash")),
        ({"flash": FLASH.TORCH_FLASH}, ("cuda", "triton", "flash")),
        ({"flash": None}, ("cuda", "triton", "flash")),
        # What nobody measured, and the model says nothing about: the registry's own order.
        ({"training": False, "flash": 2}, ()),
        ({"training": False, "flash": 4}, ()),
        ({"training": False, "rows": 4095}, ()),
        ({"training": False, "head_dim": 96}, ()),
        ({"flash": 2}, ()),
        ({"flash": 4}, ()),
        ({"arch": "sm_100"}, ()),
        ({"dtype": "float32"}, ()),
        ({"head_dim": 64}, ()),
        ({"flash": FLASH.TORCH_CUDNN, "rows": 4095}, ()),
    ],
)
def test_built_in_choices(cache: Path, change: dict, first: tuple[str, ...]) -> None:
    assert preferences.first_tried(dataclasses.replace(H100, **change)) == first


def test_every_built_in_choice_says_what_it_rests_on() -> None:
    for choice in preferences.TABLE:
        assert choice.basis in ("measured", "inferred", "modelled") and len(choice.how) > 40
        assert set(choice.order) <= set(registry.backend_names())
        assert bool(choice.device) == (choice.basis == "measured")
        if choice.basis == "inferred":
            assert "alone" in choice.how


def test_an_entry_of_the_gpu_itself_decides_there(cache: Path) -> None:
    for device, basis in (("NVIDIA H200", "measured"), ("NVIDIA H100 80GB HBM3", "inferred")):
        question = dataclasses.replace(H100, device=device, training=False, flash=FLASH.TORCH_CUDNN)
        choice = preferences.find(question)
        assert choice is not None and choice.basis == basis


def test_a_backend_says_what_it_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "unavailable", lambda: None)
    monkeypatch.setattr(flash, "description", lambda: "two of them were found")
    (status,) = (status for status in gk.backends() if status.name == "flash")
    assert status.usable and status.reason == "two of them were found"


def test_a_gpu_call_goes_where_the_table_says(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_gpu(monkeypatch, H100)
    assert registry.pick(gpu_call(), None) is flash, "cuda, which comes first, is not there"
    assert list(registry.explain(gpu_call())) == ["cuda", "flash", "triton", "cpu", "eager"]
    assert registry.pick(gpu_call(), "triton") is triton
    on_a_gpu(monkeypatch, dataclasses.replace(H100, rows=100, training=False))
    assert registry.pick(gpu_call(), None) is triton
    on_a_gpu(monkeypatch, H100, refusing="flash")
    assert registry.pick(gpu_call(), None) is triton


def test_a_cpu_call_asks_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(question: Question) -> tuple[str, ...]:
        raise AssertionError("asked")

    monkeypatch.setattr(preferences, "first_tried", never)
    assert registry.order(attention_call()) == registry.backend_names()
    rope_call = gk.RopeCall(torch.device("cuda"), torch.float32, 16)
    assert registry.order(rope_call) == registry.backend_names()


MEASURED = Choice(
    arch="sm_90",
    dtypes=("bfloat16",),
    head_dims=(128,),
    rows=(5000, 40000),
    training=True,
    order=("triton", "flash"),
    basis="measured",
    how="on a clock",
    flash=(Generation.FLASH_3,),
    device="H100",
)


def test_the_users_table_comes_first(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preferences.write_table([MEASURED], cache)
    assert list(cache.parent.iterdir()) == [cache], "no temporary file is left"
    assert preferences.user_table() == (MEASURED,)
    on_a_gpu(monkeypatch, H100)
    assert registry.pick(gpu_call(), None) is triton
    # It holds for that GPU, length and FlashAttention only.
    for change in ({"device": "H200"}, {"rows": 40001}, {"rows": 4999}):
        assert preferences.find(dataclasses.replace(H100, **change)) in preferences.TABLE
    for change in ({"flash": None}, {"training": False}):
        assert preferences.find(dataclasses.replace(H100, **change)) in preferences.TABLE
    without = dataclasses.replace(MEASURED, flash=(0,))
    assert without.fits(dataclasses.replace(H100, flash=None)) and not without.fits(H100)


def test_unknown_names_in_a_table_are_passed_over(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table of a version with more backends."""
    preferences.write_table([dataclasses.replace(MEASURED, order=("hip", "flash"))], cache)
    on_a_gpu(monkeypatch, H100)
    assert registry.order(gpu_call()) == ("flash", "cpu", "triton", "cuda", "eager")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"format": 2, "choices": []}',
        '{"format": 1}',
        '{"format": 1, "choices": [{"arch": "sm_90"}]}',
        '{"format": 1, "choices": [7]}',
    ],
)
def test_a_malformed_table_is_named_and_left_alone(cache: Path, text: str) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text(text)
    with pytest.warns(UserWarning, match="choices.json: not a table of choices"):
        assert preferences.first_tried(H100) == ("cuda", "flash", "triton")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert preferences.first_tried(H100) == ("cuda", "flash", "triton"), "it warns once"
    assert cache.read_text() == text


@pytest.mark.parametrize(
    ("field", "value"),
    [("rows", [1]), ("rows", ["a", None]), ("order", "flash"), ("flash", 3), ("dtypes", "b")],
)
def test_a_malformed_entry(cache: Path, field: str, value: object) -> None:
    preferences.write_table([MEASURED], cache)
    data = json.loads(cache.read_text())
    data["choices"][0][field] = value
    with pytest.raises(ValueError, match="unpack" if value == [1] else field):
        preferences.read_table(json.dumps(data))


def test_a_table_is_written_whole_or_not_at_all(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preferences.write_table([MEASURED], cache)
    before = cache.read_text()

    def full(*paths: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        preferences.write_table([], cache)
    assert cache.read_text() == before and list(cache.parent.iterdir()) == [cache]


def test_measuring_anew_replaces_what_is_about_the_same(cache: Path) -> None:
    other = dataclasses.replace(MEASURED, head_dims=(64,))
    new = dataclasses.replace(MEASURED, rows=(0, None), order=("flash", "triton"))
    assert preferences.updated([MEASURED, other], [new]) == [new, other]


@pytest.mark.parametrize(
    ("platform", "variable", "wanted"),
    [
        ("linux", "XDG_CACHE_HOME", "genhoi"),
        ("linux", None, ".cache/genhoi"),
        ("darwin", None, "Library/Caches/genhoi"),
        ("win32", "LOCALAPPDATA", "genhoi"),
        ("win32", None, "AppData/Local/genhoi"),
    ],
)
def test_cache_folder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    platform: str,
    variable: str | None,
    wanted: str,
) -> None:
    for name in ("GENHOI_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(files.sys, "platform", platform)
    monkeypatch.setattr(files.Path, "home", classmethod(lambda cls: tmp_path))
    if variable is not None:
        monkeypatch.setenv(variable, str(tmp_path))
    assert files.cache_folder() == tmp_path / wanted


def test_importing_the_ops_needs_nothing_but_torch() -> None:
    """Whoever imports the ops into a model does not pay for video, figures or a command line."""
    code = (
        "import sys, genhoi_kernels; "
        "print([m for m in ('av', 'matplotlib', 'click', 'rich', 'PIL') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
