"""The README's Python runs as it stands, and names only what exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from genhoi.media import media

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), flags=re.DOTALL)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that the examples name, small, in the current folder."""
    frames = torch.randint(0, 255, (9, 32, 48, 3), dtype=torch.uint8)
    media.write_clip(tmp_path / "clip.mp4", media.Clip(frames))
    media.write_mask(tmp_path / "mask.mp4", torch.ones(9, 32, 48, dtype=torch.bool))
    media.write_image(tmp_path / "mug.png", frames[0])
    monkeypatch.chdir(tmp_path)


def test_the_op_in_your_own_model() -> None:
    names: dict[str, object] = {}
    for block in BLOCKS:
        if "pipe" not in block:
            exec(compile(block, "README.md", "exec"), names)
    out = names["out"]
    assert isinstance(out, torch.Tensor)
    assert out.shape == (1, 320, 12, 64)
    assert not out.isnan().any()


def test_the_plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small transformer, and one step of it in the pipeline's place."""
    from support.tiny_wan import inputs, lively_adapter, reference, some_tokens, tiny_wan

    monkeypatch.chdir(tmp_path)
    model = tiny_wan()
    lively_adapter(model).save_pretrained("path/to/adapter")
    arguments = inputs(model)

    class Pipe:
        transformer = model

        @torch.no_grad()
        def __call__(self, *_: object) -> torch.Tensor:
            return model(**arguments)[0]

    pipe = Pipe()
    names = {"pipe": pipe, "object_latent": reference(), "mask": some_tokens()}
    (block,) = (block for block in BLOCKS if "attach(" in block)
    exec(compile(block, "README.md", "exec"), names)
    assert not torch.equal(names["video"], pipe())


@pytest.mark.usefixtures("files")
def test_the_edit() -> None:
    (block,) = (block for block in BLOCKS if "GenHOIPipeline" in block)
    exec(compile(block, "README.md", "exec"), {})
    assert media.read_clip("edited.mp4").frames.shape == (9, 32, 48, 3)


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", "docs/op.md", "docs/model_layer.md"]
)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text):
        if not target.startswith("http"):
            assert ((ROOT / page).parent / target).exists(), target


def test_make_targets_exist() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for target in re.findall(r"^make ([a-z-]+)", README.read_text(), flags=re.MULTILINE):
        assert target in targets
