"""The application asks the protocol: it names no family of models, and takes a new one as it is."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor
from torch.nn import functional as F

import genhoi
from genhoi import Clip, EditWarning, GenHOIPipeline
from genhoi.bases import load
from genhoi.bases.load import base_config, base_kind, load_base
from genhoi.bases.mosaic import MosaicBase
from genhoi.bases.wan import WanBase
from genhoi.models import registry
from genhoi.models.adapter import GenHOIAdapter
from genhoi.models.options import Options
from genhoi.models.registry import empty_model, model_of
from genhoi.models.wan.attach import WanAttachment
from genhoi.models.wan.model import WanModel

PACKAGE = Path(genhoi.__file__).parent
OF_A_FAMILY = ("genhoi.models.wan", "genhoi.bases.mosaic", "genhoi.bases.wan", "diffusers")
# The release's weights are those of a Wan, and so is each pipeline of diffusers.
MAY_NAME_WAN = {"__init__.py", "convert.py", "pipelines/pixels.py", "pipelines/wan.py"}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None and node.level == 0, f"{path}: a relative import"
            yield node.module


def test_only_their_own_folders_name_families_and_bases() -> None:
    naming = {
        f"{path.relative_to(PACKAGE)}: {name}"
        for path in PACKAGE.rglob("*.py")
        if not path.is_relative_to(PACKAGE / "models" / "wan")
        and not path.is_relative_to(PACKAGE / "bases")
        and path.relative_to(PACKAGE).as_posix() not in MAY_NAME_WAN
        for name in imports(path)
        if name.startswith(OF_A_FAMILY)
    }
    assert not naming


# ----------------------------------------------------------------------- another family and base


class OtherTransformer(WanTransformer3DModel):  # type: ignore[misc]
    """A transformer of another class, which holds references in frames of the video."""


class OtherAttachment(WanAttachment):
    """References take one latent frame in front of the video's."""

    reference_frames = 1


class OtherModel(WanModel):
    """A family whose condition has the references' frames, and comes before the latents."""

    shapes: list[tuple[int, ...]] = []  # noqa: RUF012

    @classmethod
    def takes(cls, class_name: str, config: Mapping[str, Any]) -> bool:
        return class_name == "OtherTransformer"

    @classmethod
    def empty(cls, config: Mapping[str, Any]) -> OtherModel:
        return cls(OtherTransformer.from_config(dict(config)))

    def inputs(
        self,
        latents: Tensor,
        condition: Tensor,
        timestep: Tensor,
        text: Tensor,
        image: Tensor | None,
    ) -> dict[str, Any]:
        self.shapes.append(tuple(latents.shape))
        return super().inputs(condition, latents, timestep, text, image)

    def with_references(self, condition: Tensor, references: Sequence[Tensor]) -> Tensor:
        return F.pad(condition, (0, 0, 0, 0, len(references), 0))

    def attach(
        self, adapter: GenHOIAdapter, options: Options, backend: str | None = None
    ) -> OtherAttachment:
        return OtherAttachment(self, adapter, options, backend)


class OtherBase(MosaicBase):
    """A base of that family."""

    @classmethod
    def takes(cls, name: str | os.PathLike[str]) -> bool:
        return str(name) == "other"

    @classmethod
    def read_config(cls, name: str | os.PathLike[str]) -> dict[str, Any]:
        return super().read_config(name) | {"_class_name": "OtherTransformer"}

    @classmethod
    def load(
        cls,
        name: str | os.PathLike[str],
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        seed: int,
        transformer: Any = None,
    ) -> OtherBase:
        base = cls(None, seed=seed, device=device, dtype=dtype)
        base.transformer = empty_model(cls.read_config(name)).transformer.eval()
        return base


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line each in the two registries."""
    here = sys.modules[__name__].__name__
    monkeypatch.setattr(registry, "_FAMILIES", ((here, "OtherModel"), *registry._FAMILIES))
    monkeypatch.setattr(load, "_KINDS", ((here, "OtherBase"), *load._KINDS))
    OtherModel.shapes.clear()


@pytest.mark.usefixtures("other")
def test_another_family_is_a_folder_and_a_line() -> None:
    assert base_kind("other") is OtherBase and base_kind("tiny") is WanBase
    assert base_config("other")["_class_name"] == "OtherTransformer"
    assert type(model_of(load_base("other").transformer)) is OtherModel
    assert type(model_of(load_base("mosaic-untrained").transformer)) is WanModel


@pytest.mark.usefixtures("other")
def test_another_family_edits() -> None:
    """Its references take a frame of the latents, which does not reach the result."""
    frames = torch.zeros(5, 32, 48, 3, dtype=torch.uint8)
    mask = torch.zeros(5, 32, 48, dtype=torch.bool)
    mask[:, :16, 16:32] = True
    picture = torch.full((16, 16, 3), 200, dtype=torch.uint8)
    pipeline = GenHOIPipeline.from_pretrained("other", mask_gate=False, untrained_adapter=True)
    with pytest.warns(EditWarning, match="far from"):
        edited = pipeline(Clip(frames), mask, picture, steps=2)
    assert edited.frames.shape == frames.shape
    assert OtherModel.shapes == [(1, 16, 3, 4, 6)] * 2


def test_transformers_that_nobody_knows_are_refused() -> None:
    with pytest.raises(TypeError, match="transformer: got Linear, wanted a diffusers Wan"):
        model_of(torch.nn.Linear(1, 1))
    with pytest.raises(TypeError, match="config: got one of a Nothing"):
        empty_model({"_class_name": "Nothing"})
