"""Which FlashAttention takes a call, what is asked of it, and that the stand-ins are like it."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import flash_standins
from support.cases import arguments, device_of, make_case
from support.flash_cases import HALF, UNAVAILABLE, WHOLE, for_sm_90, needs_triton, settings
from support.flash_standins import STANDINS, TORCH_OWN, Aten, Calls, install

import genhoi_kernels as gk
from genhoi_kernels.backends import registry
from genhoi_kernels.backends.flash import backend as flash
from genhoi_kernels.backends.flash import torch_own, versions
from genhoi_kernels.backends.flash.adapter import INTERPRETER, Generation

pytest_plugins = ["support.flash_cases"]


# ---------------------------------------------------------------------------------- refusals


def refusal(**changes: Any) -> str:
    call = dataclasses.replace(dataclasses.replace(WHOLE, dim=16).call("flash"), **changes)
    reason = gk.supports("flash", call)
    assert reason is not None
    with pytest.raises(ValueError, match="backend: 'flash' cannot take this call"):
        registry.pick(call, "flash")
    return reason


@needs_triton
def test_refusals(one_flash: Calls) -> None:
    assert "not torch.float32" in refusal(dtype=torch.float32)
    assert "head dim 20 is not a multiple of 8" in refusal(head_dim=20)
    assert "264" in refusal(head_dim=264)
    assert "positive scales, not -0.25" in refusal(scale=-0.25)
    assert "not on meta" in refusal(device=torch.device("meta"))


@for_sm_90
def test_refusals_of_a_package_without_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    for calls in install("fa3-fwd", monkeypatch):
        assert "fa3-fwd has no backward pass" in refusal()
        assert "without torch.float16" in refusal(dtype=torch.float16, needs_grad=False)
        case = dataclasses.replace(WHOLE, gate=None)
        args = arguments(case, make_case(case), HALF, device_of("flash"))
        with torch.no_grad():
            out, _ = gk.reference_attention(**args, backend="flash")
            wanted, _ = gk.reference_attention(**args, backend="eager")
        torch.testing.assert_close(out, wanted, rtol=0.02, atol=0.02)
        assert len(calls) == 3


@needs_triton
def test_nothing_is_installed(no_flash: Calls) -> None:
    reason = flash.unavailable()
    assert reason is not None and "pip install flash-attn" in reason and "fa3-fwd" in reason
    assert "this torch has none" in reason
    assert flash.generation(WHOLE.call("flash")) is None


@pytest.mark.parametrize(
    ("name", "arch", "head_dim", "words"),
    [
        ("flash-attn 2", "sm_80", 256, None),
        ("flash-attn 2", "sm_120", 128, None),
        ("flash-attn 3", "sm_90", 128, None),
        ("flash-attn 3", "sm_80", 128, "flash-attn-3 is for sm_90, not for sm_80"),
        ("flash-attn 4", "sm_100", 128, None),
        ("flash-attn 4", "sm_100", 256, None),
        ("flash-attn 4", "sm_90", 192, None),
        ("flash-attn 4", "sm_100", 192, "head dims up to 128, and 256, on sm_100, not 192"),
        ("flash-attn 4", "sm_120", 128, "not for sm_120"),
        ("torch flash", "sm_80", 256, None),
        ("torch flash", "sm_120", 128, None),
        ("torch cuDNN", "sm_80", 128, None),
        ("torch cuDNN", "sm_90", 136, "takes head dims up to 128, not 136"),
    ],
)
def test_gpus_of_a_generation(
    monkeypatch: pytest.MonkeyPatch, name: str, arch: str, head_dim: int, words: str | None
) -> None:
    for _ in install(name, monkeypatch):
        (version,) = versions.installed()
        reason = version.refuses(arch, HALF, head_dim, True)
        assert reason is None if words is None else words in (reason or "")


def test_old_packages_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in install("flash-attn 2", monkeypatch):
        monkeypatch.setattr(sys.modules["flash_attn"], "__version__", "2.6.3")
        assert versions.installed() == ()
    for _ in install("flash-attn 4", monkeypatch):
        module = sys.modules["flash_attn.cute.interface"]
        monkeypatch.setattr(module, "_flash_attn_fwd", lambda q, k, v: None)
        assert versions.installed() == ()


def test_what_torch_has_to_have(monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in install("torch cuDNN", monkeypatch):
        monkeypatch.setattr(torch_own, "cudnn_version", lambda: 91500)
        assert versions.installed() == ()
    for name in TORCH_OWN:
        for _ in install(name, monkeypatch):
            monkeypatch.setattr(torch_own, "torch_has_flash", lambda: False)
            assert versions.installed() == ()


def test_what_is_asked_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build for CUDA with FlashAttention, and a GPU; a cuDNN that can't be loaded is none."""
    for version, built, gpu in itertools.product(("13.0", None), (True, False), (True, False)):
        monkeypatch.setattr(torch.version, "cuda", version)
        for module, name, answer in (
            (torch.backends.cuda, "is_flash_attention_available", built),
            (torch.cuda, "is_available", gpu),
        ):
            monkeypatch.setattr(module, name, lambda answer=answer: answer)
        wanted = version is not None and built and gpu
        assert torch_own.torch_has_flash() == wanted

    def mismatch() -> int:
        raise RuntimeError("cuDNN version incompatibility")

    for version_of, number in ((lambda: 91900, 91900), (lambda: None, 0), (mismatch, 0)):
        monkeypatch.setattr(torch.backends.cudnn, "version", version_of)
        assert torch_own.cudnn_version() == number


def test_cudnn_trains_only_if_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """And never where torch is to refuse what is not deterministic."""
    for _ in install("torch cuDNN", monkeypatch):
        (cudnn,) = versions.installed()

        def refusal(needs_grad: bool = True, cudnn: Any = cudnn) -> str | None:
            reason: str | None = cudnn.refuses("sm_90", HALF, 128, needs_grad)
            return reason

        assert refusal() is None
        for value in (None, "", "0"):
            if value is None:
                monkeypatch.delenv("GENHOI_CUDNN_BACKWARD")
            else:
                monkeypatch.setenv("GENHOI_CUDNN_BACKWARD", value)
            assert "GENHOI_CUDNN_BACKWARD=1 allows it" in (refusal() or "")
            assert refusal(needs_grad=False) is None
        monkeypatch.setenv("GENHOI_CUDNN_BACKWARD", "1")
        torch.use_deterministic_algorithms(True)
        assert "use_deterministic_algorithms is on" in (refusal() or "")
        assert refusal(needs_grad=False) is None
        torch.use_deterministic_algorithms(False)
        assert refusal() is None
        monkeypatch.setenv("TORCH_CUDNN_SDPA_AVOID_RECOMPILE", "1")
        assert "AVOID_RECOMPILE" in (refusal() or "") and refusal(needs_grad=False) is None


@pytest.mark.parametrize("name", TORCH_OWN)
def test_torchs_switches_are_heeded(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for _ in install(name, monkeypatch):
        (version,) = versions.installed()
        switch = "enable_flash_sdp" if name == "torch flash" else "enable_cudnn_sdp"
        assert version.refuses("sm_90", HALF, 64, False) is None
        getattr(torch.backends.cuda, switch)(False)
        reason = version.refuses("sm_90", HALF, 64, False)
        assert f"{version.package} is switched off (torch.backends.cuda.{switch})" == reason
        if UNAVAILABLE is None:
            assert flash.unavailable() == reason
            getattr(torch.backends.cuda, switch)(True)
            assert flash.unavailable() is None


@pytest.mark.parametrize("name", TORCH_OWN)
def test_torchs_operators_are_not_for_the_interpreter(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for _ in install(name, monkeypatch):
        (version,) = versions.installed()
        monkeypatch.setattr(torch_own, "aten", torch.ops.aten)
        reason = version.refuses(INTERPRETER, HALF, 64, False)
        assert reason == f"{version.package} needs a GPU"
        assert version.refuses("sm_80", HALF, 64, False) is None


def everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """All packages and both of torch's own are found."""
    finders = versions._FINDERS
    for name in ("flash-attn 2", "flash-attn 3", "fa3-fwd"):
        for module, standin in STANDINS[name]([]).items():
            monkeypatch.setitem(sys.modules, module, standin)
    monkeypatch.setattr(torch_own, "torch_has_flash", lambda: True)
    monkeypatch.setattr(torch_own, "cudnn_version", lambda: 92400)
    monkeypatch.setattr(torch_own, "aten", Aten([]))
    monkeypatch.setattr(versions, "_FINDERS", finders)


def test_the_order_in_which_they_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    cudnn, own = "torch's cuDNN attention", "torch's FlashAttention"
    for _ in install(None, monkeypatch):
        everything(monkeypatch)
        for arch, wanted in (
            ("sm_90", ["flash-attn-3", "fa3-fwd", cudnn, "flash-attn", own]),
            ("sm_80", ["flash-attn-3", "fa3-fwd", "flash-attn", own, cudnn]),
            ("sm_100", ["flash-attn-3", "fa3-fwd", "flash-attn", own, cudnn]),
        ):
            assert [version.package for version in versions.tried(arch)] == wanted, arch
        assert flash.description().endswith(
            f"; here: flash-attn-3, fa3-fwd, {cudnn}, flash-attn, {own}"
        )


@for_sm_90
def test_which_of_torchs_own_takes_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    generation = Generation
    for _ in install(None, monkeypatch):
        everything(monkeypatch)
        for module in ("flash_attn", "flash_attn_interface", "fa3_fwd_interface"):
            monkeypatch.setitem(sys.modules, module, None)
        training = WHOLE.call("flash")
        assert flash.generation(training) == generation.TORCH_FLASH == 20
        inference = dataclasses.replace(training, needs_grad=False)
        assert flash.generation(inference) == generation.TORCH_CUDNN == 90
        assert flash.chosen(inference).package == "torch's cuDNN attention"
        monkeypatch.setenv("GENHOI_CUDNN_BACKWARD", "1")
        assert flash.generation(training) == generation.TORCH_CUDNN
        torch.backends.cuda.enable_cudnn_sdp(False)
        torch.backends.cuda.enable_flash_sdp(False)
        reason = gk.supports("flash", training) or ""
        assert "cuDNN attention is switched off" in reason and "FlashAttention is" in reason
        assert flash.generation(training) is None


@for_sm_90
def test_the_newest_that_takes_the_call_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {**STANDINS["flash-attn 2"]([]), **STANDINS["fa3-fwd"]([])}
    for _ in install(None, monkeypatch):
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        call = WHOLE.call("flash")
        assert flash.generation(call) == 2
        assert flash.generation(dataclasses.replace(call, needs_grad=False)) == 3
        assert flash.generation(dataclasses.replace(call, scale=-1.0)) is None


@for_sm_90
def test_the_only_one_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """GENHOI_FLASH: what it names is taken or nothing is; what it can't mean is refused."""
    modules = {**STANDINS["flash-attn 2"]([]), **STANDINS["fa3-fwd"]([])}
    for _ in install(None, monkeypatch):
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        call = dataclasses.replace(WHOLE.call("flash"), needs_grad=False)
        assert flash.generation(call) == 3
        monkeypatch.setenv("GENHOI_FLASH", "flash-2")
        assert flash.generation(call) == 2
        monkeypatch.setenv("GENHOI_FLASH", "torch-cudnn")
        assert gk.supports("flash", call) == "GENHOI_FLASH asks for torch-cudnn, which is not here"
        monkeypatch.setenv("GENHOI_FLASH", "flash-5")
        with pytest.raises(ValueError, match=r"GENHOI_FLASH: got 'flash-5', wanted one of flash-2"):
            gk.supports("flash", call)


# ------------------------------------------------------------------- determinism of torch's own


def one_backward(version: Any) -> None:
    x = torch.randn(1, 5, 2, 16).to(HALF)
    version.backward(x, x, x, x, x, torch.zeros(1, 2, 5), 0.25)


@pytest.mark.parametrize("before", [(False, False), (True, False), (True, True)])
def test_torchs_flash_is_deterministic_and_leaves_the_setting(
    monkeypatch: pytest.MonkeyPatch, before: tuple[bool, bool]
) -> None:
    for calls in install("torch flash", monkeypatch):
        (version,) = versions.installed()
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        fills = torch.utils.deterministic.fill_uninitialized_memory
        one_backward(version)
        assert calls[-1].deterministic and settings() == before
        assert torch.utils.deterministic.fill_uninitialized_memory == fills

        def fails(*args: Any, **kwargs: Any) -> None:
            assert settings() == (True, False)
            raise RuntimeError("out of memory")

        monkeypatch.setattr(torch_own.aten, "_flash_attention_backward", fails)
        with pytest.raises(RuntimeError, match="out of memory"):
            one_backward(version)
        assert settings() == before


def test_cudnn_reads_out_dout_and_lse_in_one_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """However they come: a plan is found again without looking at them."""
    for _ in install("torch cuDNN", monkeypatch):
        (version,) = versions.installed()
        q, k, out, dout = (torch.randn(2, rows, 3, 16).to(HALF) for rows in (5, 4, 5, 5))
        lse = torch.randn(2, 3, 5)
        wanted = version.backward(dout, q, k, k, out, lse, 0.25)
        heads_first = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (dout, out)]
        rows_first = lse.transpose(1, 2).contiguous().transpose(1, 2)
        again = version.backward(heads_first[0], q, k, k, heads_first[1], rows_first, 0.25)
        assert all(torch.equal(x, y) for x, y in zip(wanted, again, strict=True))


@pytest.fixture
def torch_flash(monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    """torch's own FlashAttention is found."""
    yield from install("torch flash", monkeypatch)


def test_threads_do_not_restore_each_others_setting(
    torch_flash: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    (version,) = versions.installed()
    real, seen = torch_own.aten._flash_attention_backward, []

    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.2)  # the others get their turn, as while torch launches
        seen.append(settings())
        return real(*args, **kwargs)

    monkeypatch.setattr(torch_own.aten, "_flash_attention_backward", slow)
    torch.use_deterministic_algorithms(False)
    threads = [threading.Thread(target=one_backward, args=(version,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [(True, False)] * 3 and settings() == (False, False)


# --------------------------------------------------------------------------------- signatures

SIGNATURES = json.loads(
    (Path(flash_standins.__file__).with_name("flash_signatures.json")).read_text()
)
# Which of them each stand-in follows: package and file.
FOLLOWS = {
    "flash-attn 2": ("flash-attn", "flash_attn/flash_attn_interface.py"),
    "flash-attn 3": ("flash-attn", "hopper/flash_attn_interface.py"),
    "flash-attn 3, operator": ("fa3-fwd", "fa3_fwd_interface.py"),
    "fa3-fwd": ("fa3-fwd", "fa3_fwd_interface.py"),
    "flash-attn 4": ("flash-attn-4", "flash_attn/cute/interface.py"),
}


def published(package: str, file: str) -> dict[str, inspect.Signature]:
    """Signatures of a package's functions, by name."""
    signatures = {}
    for entry in SIGNATURES:
        if (entry["package"], entry["file"]) == (package, file):
            signatures[entry["function"]] = inspect.Signature(
                [
                    inspect.Parameter(
                        p["name"],
                        inspect.Parameter.POSITIONAL_OR_KEYWORD,
                        default=ast.literal_eval(p["default"])
                        if "default" in p
                        else inspect.Parameter.empty,
                    )
                    for p in entry["parameters"]
                ]
            )
    return signatures


@pytest.mark.parametrize("name", STANDINS)
def test_standins_have_the_published_signatures(name: str) -> None:
    (module,) = (m for m in STANDINS[name]([]).values() if "_flash_attn" in str(vars(m).keys()))
    for function, signature in published(*FOLLOWS[name]).items():
        assert str(inspect.signature(getattr(module, function))) == str(signature), function


@pytest.mark.parametrize("name", [name for name in vars(Aten) if "attention" in name])
def test_standins_have_the_schemas_of_this_torch(name: str) -> None:
    """A newer torch may have more arguments by name, which need not be given."""
    schema = getattr(torch.ops.aten, name).default._schema
    parameters = [p for p in inspect.signature(getattr(Aten, name)).parameters.values()][1:]
    assert [p.name for p in parameters] == [a.name for a in schema.arguments[: len(parameters)]]
    for p, a in zip(parameters, schema.arguments, strict=False):
        assert (p.kind is p.KEYWORD_ONLY) == a.kwarg_only, p.name
        assert (p.default is not p.empty) == a.has_default_value(), p.name
        assert p.default is p.empty or p.default == a.default_value, p.name
    for a in schema.arguments[len(parameters) :]:
        assert a.kwarg_only and a.has_default_value(), a.name


def test_the_forerunner_of_flash_attn_4_is_told_from_it() -> None:
    old = published("flash-attn", "flash_attn/cute/interface.py")
    assert "return_lse" not in old["_flash_attn_fwd"].parameters
    assert "return_lse" in published(*FOLLOWS["flash-attn 4"])["_flash_attn_fwd"].parameters
