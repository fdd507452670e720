"""The files of the VACE release, as they are published, into a pipeline and an adapter."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from diffusers import WanVACEPipeline
from safetensors.torch import save_file
from support.tiny_vace import save_tiny_vace_base, tiny_vace, vace_inputs
from support.tiny_wan import lively_adapter
from torch import Tensor

from genhoi import GenHOIAdapter, attach, from_official, to_official
from genhoi.bases.load import shipped_adapters
from genhoi.cli.group import main
from genhoi.convert import GatesWarning, infer_config, join_files
from genhoi.models.wan.vace.low_rank import LORA_MODULES

BRANCH = "step-5000-gate_attn.safetensors"
LORA = "step-1700-lora-gate-720.safetensors"
TRUNK = "Wan2.1-VACE.safetensors"


def is_low_rank(name: str) -> bool:
    return ".lora_" in name


def is_gate(name: str) -> bool:
    return ".attn.gate." in name


@pytest.fixture(scope="module")
def official() -> dict[str, Tensor]:
    """The finetuned branch and the stock trunk, gates, and low-rank weights, in one."""
    model = tiny_vace()
    return to_official(model, lively_adapter(model, rank=3))


@pytest.fixture(scope="module")
def published(official: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files by the authors' names; the LoRA file has gates of its own. A stock pipeline."""
    folder = tmp_path_factory.mktemp("published")
    stock = tiny_vace()
    with torch.no_grad():
        for name, p in stock.named_parameters():
            if name.startswith("vace_"):
                p.add_(0.5)
    save_tiny_vace_base(folder / "stock", stock)
    of_stock = to_official(stock, lively_adapter(stock, rank=0))
    gates = {n: x.neg() for n, x in official.items() if is_gate(n)}
    write(folder / TRUNK, {n: x for n, x in of_stock.items() if not is_gate(n)})
    write(folder / BRANCH, {n: x for n, x in official.items() if in_branch_file(n)})
    write(folder / LORA, {n: x for n, x in official.items() if is_low_rank(n)} | gates)
    return folder


def in_branch_file(name: str) -> bool:
    return name.startswith("vace_") and not is_low_rank(name)


def write(path: Path, weights: dict[str, Tensor]) -> None:
    save_file({n: x.detach().contiguous() for n, x in weights.items()}, path)


def convert(*arguments: Any) -> Result:
    return CliRunner().invoke(main, ["convert", *map(str, arguments)])


def converted(out: Path) -> dict[str, Tensor]:
    pipe = WanVACEPipeline.from_pretrained(out)
    return to_official(pipe.transformer, GenHOIAdapter.from_pretrained(out / "adapter"))


def assert_same(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert set(got) == set(wanted)
    assert all(torch.equal(got[name], x) for name, x in wanted.items())


@pytest.mark.parametrize("gates_from", [None, "base", "lora"])
@pytest.mark.parametrize("trunk", ["stock pipeline", "file"])
def test_the_published_files_make_a_pipeline(
    official: dict[str, Tensor],
    published: Path,
    tmp_path: Path,
    trunk: str,
    gates_from: str | None,
) -> None:
    """Trunk of the stock, branch of the authors, LoRA unmerged, gates of whom one says."""
    files = [LORA, BRANCH] if trunk == "stock pipeline" else [LORA, TRUNK, BRANCH]
    arguments = [x for name in files for x in ("--weights", published / name)]
    more = [] if gates_from is None else ["--gates-from", gates_from]
    out = tmp_path / "out"
    result = convert(*arguments, "--pipeline", published / "stock", "--out", out, *more)
    assert result.exit_code == 0, result.output
    negated = {
        n: x.neg() if is_gate(n) and gates_from == "lora" else x for n, x in official.items()
    }
    assert_same(converted(out), negated)
    said = "24 gate tensors, of which 24 differ from the VACE branch's; the branch's are used"
    assert (said in result.output) == (gates_from != "lora"), result.output
    assert shipped_adapters(out) == (out / "adapter",)
    config = GenHOIAdapter.from_pretrained(out / "adapter").config
    assert (config.rank, config.schedule, config.flow_gate) == (3, "release", "token")


def test_a_lora_file_on_a_stock_pipeline(
    official: dict[str, Tensor], published: Path, tmp_path: Path
) -> None:
    """Without the authors' branch: the LoRA file's own gates are used, nothing is dropped."""
    out = tmp_path / "out"
    result = convert(
        "--weights", published / LORA, "--pipeline", published / "stock", "--out", out
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    got = converted(out)
    assert all(torch.equal(got[n], x.neg()) for n, x in official.items() if is_gate(n))
    stock = WanVACEPipeline.from_pretrained(published / "stock").transformer.state_dict()
    mine = WanVACEPipeline.from_pretrained(out).transformer.state_dict()
    assert all(torch.equal(mine[name], x) for name, x in stock.items())


def test_without_trunk_or_with_two_loras_it_is_refused(published: Path, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "out"]
    branch, lora = ["--weights", published / BRANCH], ["--weights", published / LORA]
    for arguments, message in (
        ([*branch, *out], "--weights: they lack the trunk, which are those of a stock Wan VACE"),
        ([*lora, *out], "--weights: they lack the trunk and VACE branch"),
        ([*branch, *lora, *lora, *out], "--weights: got two LoRA files, wanted one of them"),
    ):
        result = convert(*arguments)
        assert result.exit_code == 1 and message in result.output, result.output
    bare = tmp_path / "bare"
    shutil.copytree(published / "stock", bare)
    for path in (bare / "transformer").glob("*.safetensors"):
        path.unlink()
    result = convert(*branch, "--pipeline", bare, *out)
    assert result.exit_code == 1 and "wanted them among the files" in result.output
    assert not (tmp_path / "out").exists()


def test_there_and_back_without_a_copy(official: dict[str, Tensor]) -> None:
    transformer, adapter = from_official(official, {"vace_layers": [0, 2], "eps": 1e-6})
    back = to_official(transformer, adapter)
    assert set(back) == set(official)
    assert all(back[n].data_ptr() == x.data_ptr() for n, x in official.items())
    assert infer_config(official)["vace_in_dim"] == 96


def test_low_rank_weights_work_as_merged_ones(official: dict[str, Tensor]) -> None:
    """Unmerged in the adapter, as in the release merged: W + B A."""
    transformer, adapter = from_official(official)
    handle: Any = attach(transformer, adapter)
    handle.set_reference_frames(2)
    with torch.no_grad():
        (apart,) = transformer(**vace_inputs(transformer))
    handle.detach()
    for block, layer in zip(transformer.vace_blocks, adapter.layers, strict=True):
        for name, low_rank in layer.lora.items():
            weight = block.get_submodule(LORA_MODULES[name]).weight
            with torch.no_grad():
                weight.copy_(weight + low_rank.up @ low_rank.down)
    without = GenHOIAdapter.for_transformer(transformer, rank=0)
    gates = {n: x for n, x in adapter.state_dict().items() if ".lora." not in n}
    without.load_state_dict(gates)
    handle = attach(transformer, without, schedule="release")
    handle.set_reference_frames(2)
    with torch.no_grad():
        (merged,) = transformer(**vace_inputs(transformer))
    torch.testing.assert_close(apart, merged, rtol=1e-4, atol=1e-5)


def test_targets_and_names_are_read_from_the_file(official: dict[str, Tensor]) -> None:
    base = {n: x for n, x in official.items() if not is_low_rank(n)}
    some = {
        n.replace(".default.", "."): x
        for n, x in official.items()
        if is_low_rank(n) and (".ffn.2." in n or "self_attn.q." in n)
    }
    _, adapter = from_official(base, lora=some)
    assert adapter.config.lora_targets == ("self_q", "ffn_out")
    _, plain = from_official(base)
    assert plain.config.rank == 0
    missing = {n: x for n, x in some.items() if not n.startswith("vace_blocks.1.ffn")}
    with pytest.raises(ValueError, match=r"layers\.1\.lora\.ffn_out\.down: missing"):
        from_official(base, lora=missing)


def test_gates_of_a_lora_file_are_used_or_reported(official: dict[str, Tensor]) -> None:
    base = {n: x for n, x in official.items() if not is_low_rank(n)}
    lora = {n: x for n, x in official.items() if is_low_rank(n)}
    gates = {n: x.clone() for n, x in official.items() if is_gate(n)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the same ones: nothing to say
        from_official(base, lora=lora | gates)
    name = next(iter(gates))
    with pytest.warns(GatesWarning, match="24 gate tensors, of which 1 differ"):
        from_official(base, lora=lora | gates | {name: gates[name] + 1})
    without = {n: x for n, x in base.items() if not is_gate(n)}
    _, adapter = from_official(without, lora=lora | gates)
    assert torch.equal(adapter.state_dict()["layers.0.self_gate.norm.weight"], gates[
        "vace_blocks.0.self_attn.attn.gate.mlp.0.weight"
    ])  # fmt: skip
    with pytest.raises(ValueError, match="gates_from: got 'x', wanted 'base' or 'lora'"):
        from_official(base, lora=lora, gates_from="x")  # type: ignore[arg-type]


def test_what_does_not_fit_is_refused(official: dict[str, Tensor]) -> None:
    base = {n: x for n, x in official.items() if not is_low_rank(n)}
    for change, config, message in (
        ({"vace_blocks.0.odd.weight": torch.zeros(1)}, {}, "got 'vace_blocks.0.odd.weight', wante"),
        ({"blocks.0.self_attn.q_loras.up.weight": torch.zeros(1)}, {}, "q_loras.up.weight', want"),
        ({}, {"vace_layers": [0]}, r"config\['vace_layers'\]: got \[0\], wanted 2 places"),
        ({}, {"num_heads": 2}, r"config\['num_heads'\]: got 2, wanted 4"),
        ({}, {"gate_eps": 1e-6}, r"config\['gate_eps'\]: got 1e-06, wanted 1e-05"),
        ({}, {"odd": 3}, r"config: got \['odd'\], wanted only dim"),
    ):
        with pytest.raises(ValueError, match=message):
            from_official(base | change, config)
    no_gates = {n: x for n, x in base.items() if not is_gate(n)}
    with pytest.raises(ValueError, match=r"gate\.mlp\.0\.weight is missing"):
        from_official(no_gates)
    with pytest.raises(ValueError, match=r"lora: got 'blocks\.0\.x', wanted low-rank"):
        from_official(base, lora={"blocks.0.x": torch.zeros(1)})
    with pytest.raises(ValueError, match="lora: got no low-rank weight"):
        from_official(base, lora={n: x for n, x in base.items() if is_gate(n)})
    with pytest.raises(ValueError, match=r"weights: head\.head\.bias comes twice"):
        join_files([no_gates, {"head.head.bias": no_gates["head.head.bias"]}])
