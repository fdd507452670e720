"""`tests/run_diffusers_tests.py`, on a checkout of three tests."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("diffusers", reason="needs diffusers, whose tests it runs")
pytest.importorskip("pytest_timeout", reason="needs pytest-timeout")

SCRIPT = Path(__file__).resolve().parents[1] / "run_diffusers_tests.py"
CHECKOUT = """
import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor


def run(path):
    torch.manual_seed(0)
    model = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=8,
        freq_dim=16, ffn_dim=16, num_layers=1, rope_max_seq_len=32,
    )
    if path is not None:
        model.save_pretrained(path)
        model = WanTransformer3DModel.from_pretrained(path)
    inputs = torch.ones(1, 4, 2, 8, 8), torch.ones(1), torch.ones(1, 5, 8)
    return model.eval(), model.eval()(*inputs).sample


def test_loaded_is_saved(tmp_path):
    assert torch.equal(run(tmp_path)[1], run(None)[1])


def test_processors(tmp_path):
    assert type(run(None)[0].blocks[0].attn1.processor) is WanAttnProcessor


def test_inference(tmp_path):
    assert abs(run(None)[1].double().sum().item() - RECORDED) < 1e-4
"""
RECORD = """
import torch
exec(open("checkout.py").read())
print(run(None)[1].double().sum().item())
"""


@pytest.mark.slow
def test_what_is_lost_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkout.py").write_text(CHECKOUT)
    recorded = _python("-c", RECORD, cwd=tmp_path).stdout.strip()
    folder = tmp_path / "tests/pipelines/wan"
    folder.mkdir(parents=True)
    (folder / "test_wan.py").write_text(f"RECORDED = {recorded}\n{CHECKOUT}")
    out = tmp_path / "out.json"
    arguments = (str(tmp_path), "--sets", "pipelines", "--on-cpu", "--out", str(out))
    ended = _python(str(SCRIPT), *arguments, cwd=tmp_path)
    assert ended.returncode == 1, ended.stderr
    found = json.loads(out.read_text())
    modes = found["outcomes"]["pipelines"]
    passed = {
        mode: [x.split("::")[1] for x in modes[mode] if modes[mode][x] == "passed"]
        for mode in modes
    }
    assert passed == {
        "bare": ["test_loaded_is_saved", "test_processors", "test_inference"],
        "attached": ["test_loaded_is_saved", "test_inference"],
        "reference": ["test_loaded_is_saved"],
    }
    lost = {
        mode: [x.split("::")[1] for x in found["lost"]["pipelines"][mode]]
        for mode in ("attached", "reference")
    }
    assert lost == {"attached": ["test_processors"], "reference": ["test_processors"]}


def test_no_checkout_is_told(tmp_path: Path) -> None:
    ended = _python(str(SCRIPT), str(tmp_path), "--sets", "lora", cwd=tmp_path)
    assert ended.returncode == 2
    assert "has no tests/lora/test_lora_layers_wan.py" in ended.stderr


def _python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
