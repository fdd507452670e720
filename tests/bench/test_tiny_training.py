"""benchmarks.tiny_model.train: legs follow each other, and go on after a kill."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file

from benchmarks.tiny_model import train as tiny_train
from benchmarks.tiny_model.codec import new_codec
from benchmarks.tiny_model.curves import draw_curves
from genhoi.bases.load import check_base, load_base
from genhoi.conditioning.grid import STRIDES
from genhoi.models.adapter import GenHOIAdapter
from genhoi.training.config import read_config

SMALL: dict[str, Any] = {
    "height": 32,
    "width": 32,
    "frames": 5,
    "clips": 2,
    "batch": 2,
    "steps": 2,
    "learning_rate": 1e-3,
    "checkpoint_every": 1,
    "compile": False,
    "given": {"none": 1.0},
}


@pytest.fixture(autouse=True)
def uncompiled() -> Iterator[None]:
    """Compile nothing: that takes longer than these tests."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture
def vae(tmp_path: Path) -> Path:
    new_codec(0, base_dim=4).save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


@pytest.mark.parametrize("plan", tiny_train.PLANS)
def test_settings_are_those_of_genhoi_train(plan: str, tmp_path: Path) -> None:
    seeds = set()
    for leg in range(1, len(tiny_train.PLANS[plan]) + 1):
        adapter = tmp_path / "adapter" if leg > 1 else None
        settings = tiny_train.leg_settings(plan, leg, base=tmp_path, adapter=adapter)
        path = tmp_path / "leg.yaml"
        path.write_text(yaml.safe_dump(settings))
        config = read_config(path, {})
        assert config.train_base and config.optimizer == "muon" and config.mask == "mixed"
        assert (config.adapter is None) == (leg == 1) and sum(config.given.values()) == 1
        if plan == "cpu":
            frames = STRIDES.latent_frames(config.frames)
            assert config.micro_batch is not None and config.micro_batch * frames <= 40
        seeds.add(config.data_seed)
    assert len(seeds) == len(tiny_train.PLANS[plan]) and 0 not in seeds


@pytest.mark.slow
def test_legs_follow_each_other(vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tiny_train.PLANS, "cpu", (SMALL, SMALL | {"given": {"first": 1.0}}))
    run, ended = subprocess.run, []

    def first_fails(command: list[str], **options: Any) -> Any:
        result = run(command, **options)
        ended.append(command)
        if len(ended) == 1:
            raise subprocess.CalledProcessError(130, command)
        return result

    of_subprocess = {"run": first_fails, "CalledProcessError": subprocess.CalledProcessError}
    monkeypatch.setattr(tiny_train, "subprocess", SimpleNamespace(**of_subprocess))
    options = ["--vae", str(vae), "--out", str(tmp_path / "out")]
    failed = CliRunner().invoke(tiny_train.main, options)
    assert failed.exit_code == 1 and "say it again" in failed.output
    result = CliRunner().invoke(tiny_train.main, options)
    assert result.exit_code == 0, result.output
    # The first leg was finished, not begun again; then the second.
    assert len(ended) == 3 and ended[0] == ended[1] != ended[2]
    legs = [tmp_path / "out" / f"leg-{n}" / "pipeline" for n in (1, 2)]
    weights = []
    for leg in legs:
        check_base(leg)
        base = load_base(leg)
        assert base.trained and not base.settings.takes_text
        GenHOIAdapter.from_pretrained(leg / "adapter")
        (path,) = (leg / "transformer").glob("*.safetensors")
        weights.append(load_file(path))
    changed = [name for name, w in weights[0].items() if not torch.equal(w, weights[1][name])]
    assert len(changed) > len(weights[0]) / 2
    assert not (tmp_path / "out" / "leg-1" / "latents").exists()
    assert "leg-1" in (legs[1].parent / "settings.yaml").read_text()


def test_refusals(vae: Path, tmp_path: Path) -> None:
    def refused(*options: str) -> str:
        result = CliRunner().invoke(tiny_train.main, ["--out", str(tmp_path / "out"), *options])
        assert result.exit_code == 1
        return result.output

    assert "--vae, --base: got both or none" in refused()
    assert "--vae, --base: got both or none" in refused("--vae", str(vae), "--base", str(vae))
    assert "--first: got 9, wanted at most" in refused("--vae", str(vae), "--first", "9")
    assert not (tmp_path / "out").exists()


def test_curves_are_drawn_of_all_legs(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("minutes,step,frames,loss\n1,5,1,0.4\n2,9,5,0.3\n")
    for leg in (1, 2):
        run = tmp_path / f"leg-{leg}" / "run"
        run.mkdir(parents=True)
        (run.parent / "settings.yaml").write_text("frames: 5\nbatch: 2\n")
        (run / "metrics.csv").write_text("step,loss,loss_smoothed\n10,1,1.2\n20,0.8,0.9\n")
    draw_curves(tmp_path, tmp_path, tmp_path / "new" / "curves.png")
    with Image.open(tmp_path / "new" / "curves.png") as picture:
        assert picture.width > 800
    (tmp_path / "log.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"log\.csv"):
        draw_curves(tmp_path, tmp_path, tmp_path / "curves.png")
