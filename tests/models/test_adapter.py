"""The adapter: its weights, their number, and their files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from support.tiny_wan import inputs, lively_adapter, reference, some_tokens, tiny_wan

from genhoi import AdapterConfig, GenHOIAdapter, attach

WAN_14B = {
    "num_attention_heads": 40,
    "attention_head_dim": 128,
    "in_channels": 36,
    "ffn_dim": 13824,
    "num_layers": 40,
    "image_dim": 1280,
    "added_kv_proj_dim": 5120,
}
WAN_1_3B = {
    "num_attention_heads": 12,
    "attention_head_dim": 128,
    "ffn_dim": 8960,
    "num_layers": 30,
}


@pytest.mark.parametrize(
    ("config", "base", "lora", "gates"),
    [
        (WAN_14B, 16_400_000_000, 157_286_400, 1_029_240),
        (WAN_1_3B, 1_420_000_000, 35_389_440, 514_620),
    ],
    ids=["14B", "1.3B"],
)
def test_number_of_parameters(config: dict[str, Any], base: int, lora: int, gates: int) -> None:
    """The 14B's are the release's."""
    with torch.device("meta"):
        model = WanTransformer3DModel(**config)
        adapter = GenHOIAdapter.for_transformer(model)
    before = sum(p.numel() for p in model.parameters())
    assert before == pytest.approx(base, rel=0.005)
    attach(model, adapter)
    assert sum(p.numel() for p in model.parameters()) - before == lora + gates
    counts = {"lora": 0, "gate": 0}
    for name, p in adapter.named_parameters():
        counts["lora" if "lora" in name else "gate"] += p.numel()
    assert counts == {"lora": lora, "gate": gates}
    if config is WAN_14B:
        assert lora + gates == 158_315_640


def test_initial_weights() -> None:
    model = tiny_wan()
    adapter = GenHOIAdapter.for_transformer(model)
    lora = adapter.layers[0].lora_k
    assert lora.down.std().item() == pytest.approx(1 / 128, rel=0.05)
    assert lora.down.mean().abs() < 3e-4
    assert not lora.up.any()


@pytest.mark.parametrize(("gate_init", "opening"), [("open", 0.99), ("neutral", 0.5)])
def test_gate_init(gate_init: Any, opening: float) -> None:
    """Open gates leave the pretrained model nearly as it is; neutral ones halve its attention."""
    model = tiny_wan()
    with torch.no_grad():
        (base,) = model(**inputs(model))
        handle = attach(model, GenHOIAdapter.for_transformer(model, gate_init=gate_init))
        (out,) = model(**inputs(model))
    far = (out - base).abs().max().item()
    assert far < 0.05 if gate_init == "open" else far > 0.1
    x = torch.randn(1, 3, 4, 16)
    for name in ("self_gate", "text_gate", "image_gate"):
        gate = getattr(handle.adapter.layers[1], name)
        torch.testing.assert_close(gate(x), opening * x)


def test_save_and_load(tmp_path: Path) -> None:
    model = tiny_wan()
    adapter = lively_adapter(model, schedule=[0.0, 1.5, 2.0, 2.5], flow_gate=None, mask_gate=False)
    adapter.layers[0].to(torch.bfloat16)
    adapter.save_pretrained(tmp_path / "new" / "folder")
    again = GenHOIAdapter.from_pretrained(tmp_path / "new" / "folder")
    assert again.config == adapter.config
    wanted, loaded = adapter.state_dict(), again.state_dict()
    assert list(loaded) == list(wanted)
    assert all(torch.equal(loaded[n], x) and loaded[n].dtype == x.dtype for n, x in wanted.items())
    assert [p.requires_grad for p in again.parameters()] == [
        p.requires_grad for p in adapter.parameters()
    ]
    files = {path.name for path in (tmp_path / "new" / "folder").iterdir()}
    assert files == {"adapter.safetensors", "adapter_config.json"}
    assert json.loads((tmp_path / "new/folder/adapter_config.json").read_text())["version"] == 1


def test_saving_from_an_attached_model(tmp_path: Path) -> None:
    model = tiny_wan()
    adapter = lively_adapter(model)
    handle = attach(model, adapter)
    handle.set_reference([reference()], some_tokens())
    with torch.no_grad():
        (wanted,) = model(**inputs(model))
        adapter.save_pretrained(tmp_path)
        handle.detach()
        again = attach(model, GenHOIAdapter.from_pretrained(tmp_path))
        again.set_reference([reference()], some_tokens())
        torch.testing.assert_close(model(**inputs(model))[0], wanted)


def test_loaded_weights_can_be_trained(tmp_path: Path) -> None:
    """They lie in the file's pages; writing to them leaves the file alone."""
    lively_adapter(tiny_wan()).save_pretrained(tmp_path)
    before = (tmp_path / "adapter.safetensors").read_bytes()
    adapter = GenHOIAdapter.from_pretrained(tmp_path)
    with torch.no_grad():
        for p in adapter.parameters():
            p.add_(1)
    assert (tmp_path / "adapter.safetensors").read_bytes() == before
    adapter.save_pretrained(tmp_path)  # over the file in use
    again = GenHOIAdapter.from_pretrained(tmp_path)
    assert torch.equal(again.layers[0].lora_q.up, adapter.layers[0].lora_q.up)


def test_a_failed_save_leaves_the_old_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = lively_adapter(tiny_wan())
    adapter.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(weights: Any, path: Path, **options: Any) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        adapter.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, r"got version 2, wanted 1; a later version needs a later genhoi"),
        ({"format": "lora"}, r"got format 'lora', wanted 'genhoi-adapter'"),
        ({"extra": 1}, r"got unknown keys \['extra'\]"),
        ({"num_heads": ...}, r"missing 1 required positional argument: 'num_heads'"),
        ({"num_heads": 0}, r"num_heads: got 0, wanted an integer of at least 1"),
        ({"flow_gate": "mean"}, r"flow_gate: got 'mean', wanted one of 'token', 'sequence', None"),
        ({"gate_init": "shut"}, r"gate_init: got 'shut', wanted one of 'open', 'neutral'"),
        ({"num_layers": 3}, r"layers.2.lora_q.down: missing.* and \d+ more"),
        ({"num_layers": 1}, r"layers.1.\w+.\w+.\w+: unknown"),
        ({"rank": 4}, r"lora_q.down: got shape \(8, 64\), wanted \(4, 64\)"),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    lively_adapter(tiny_wan()).save_pretrained(tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        GenHOIAdapter.from_pretrained(tmp_path)


def test_unknown_option() -> None:
    with pytest.raises(TypeError, match="ranks"):
        GenHOIAdapter.for_transformer(tiny_wan(), ranks=4)
    with pytest.raises(ValueError, match="rank: got -1"):
        AdapterConfig(num_heads=1, head_dim=8, num_layers=1, image_attention=False, rank=-1)


def test_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One commit up; both files down."""
    sent: dict[str, bytes] = {}

    class Api:
        def __init__(self, token: Any = None) -> None:
            pass

        def create_repo(self, repo_id: str, **options: Any) -> Any:
            return type("Repo", (), {"repo_id": repo_id})

        def upload_folder(self, *, folder_path: str, **options: Any) -> Any:
            sent.update({p.name: p.read_bytes() for p in Path(folder_path).iterdir()})
            return type("Commit", (), {"commit_url": "https://hub/commit/1"})

    def download(repo_id: str, name: str, **options: Any) -> str:
        path = tmp_path / name
        path.write_bytes(sent[name])
        return str(path)

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    adapter = lively_adapter(tiny_wan())
    assert adapter.push_to_hub("someone/adapter") == "https://hub/commit/1"
    again = GenHOIAdapter.from_pretrained("someone/adapter")
    assert torch.equal(again.layers[1].lora_v.up, adapter.layers[1].lora_v.up)
