"""What is learned, against plain formulas; what is drawn; settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml
from support.tiny_training import FRAMES, SIDE, Noise, clips_in, small_base, small_config
from torch import Tensor

from genhoi.conditioning.condition import build_condition
from genhoi.conditioning.masks import MaskRule, token_mask
from genhoi.data.encoded import EncodedClips, Given, conditions_for, encode_dataset
from genhoi.training import config as config_module
from genhoi.training.config import TrainConfig, changed_settings, parse_setting, read_config
from genhoi.training.objective import (
    Batch,
    SampleChoices,
    given_condition,
    make_batch,
    reconstruction_loss,
    sample_of,
)
from genhoi.training.schedule import changed_length, learning_rate_at

MODEL = small_base().model
GRID = (1 + (FRAMES - 1) // 4, SIDE // 16, SIDE // 16)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> EncodedClips:
    return clips_in(tmp_path_factory.mktemp("clips"))


def choices(**changes: Any) -> SampleChoices:
    values: dict[str, Any] = {
        "seed": 3,
        "given": {"mixed": 0.5, "none": 0.5},
        "reference_dropout": 0.25,
        "shift": 3.0,
        "mask_gate": True,
        "mask_rule": "any",
    }
    return SampleChoices(**(values | changes))


def tensors(batch: Batch) -> dict[str, Tensor]:
    return {name: x for name, x in vars(batch).items() if x is not None}


# --------------------------------------------------------------------------------------- the loss


class Remembering:
    """Stands in for a transformer: says a constant velocity, and keeps what it was asked."""

    def __call__(self, **asked: Any) -> tuple[Tensor]:
        self.asked = asked
        return (torch.full_like(asked["hidden_states"][:, :16], 0.25),)


class References:
    """Stands in for an attachment."""

    def set_reference(self, references: list[Tensor], mask: Tensor) -> None:
        self.references, self.mask = references, mask


@pytest.mark.parametrize("mask_weight", [0.0, 1.0, 4.0])
def test_loss_is_flow_matching(clips: EncodedClips, mask_weight: float) -> None:
    batch = make_batch(MODEL, clips, [0, 1, 2], choices())
    model, attachment = Remembering(), References()
    loss = reconstruction_loss(MODEL, model, attachment, batch, mask_weight=mask_weight)
    for b in range(3):
        sigma = batch.sigmas[b].item()
        noisy = (1 - sigma) * batch.clean[b] + sigma * batch.noise[b]
        asked = model.asked["hidden_states"][b]
        torch.testing.assert_close(asked, torch.cat([noisy, batch.condition[b]]))
        assert model.asked["timestep"][b].item() == pytest.approx(1000 * sigma)
        total = weights = 0.0
        for place in torch.cartesian_prod(*(torch.arange(n) for n in noisy.shape[1:])).tolist():
            f, y, x = place
            masked = batch.condition[b, :4, f, y, x].mean().item()
            weight = mask_weight * masked + 1 - masked
            wanted = batch.noise[b, :, f, y, x] - batch.clean[b, :, f, y, x]
            total += weight * (0.25 - wanted).square().mean().item()
            weights += weight
        assert loss[b].item() == pytest.approx(total / weights, rel=1e-5)
    assert attachment.references[0] is batch.objects and attachment.mask is batch.tokens


# ------------------------------------------------------------------------------------ the choices


def test_a_sample_depends_on_its_place_alone(clips: EncodedClips) -> None:
    together = make_batch(MODEL, clips, [4, 9, 7, 30], choices())
    for row, place in enumerate([4, 9, 7, 30]):
        alone = tensors(make_batch(MODEL, clips, [place], choices()))
        for name, x in tensors(together).items():
            assert torch.equal(x[row], alone[name][0]), name
    other = make_batch(MODEL, clips, [4, 9, 7, 30], choices(seed=4))
    assert not torch.equal(together.noise, other.noise)
    assert not torch.equal(together.noise[0], together.noise[1])


def test_every_pass_takes_each_clip_once_in_another_order() -> None:
    passes = [[sample_of(7 * p + i, 7, seed=1) for i in range(7)] for p in range(6)]
    assert all(sorted(order) == list(range(7)) for order in passes)
    assert len({tuple(order) for order in passes}) > 3


def test_noise_levels(clips: EncodedClips) -> None:
    """Undone, the shift leaves a uniform distribution (Kolmogorov-Smirnov, 1 in 1000)."""
    for shift in (1.0, 3.0):
        sigmas = torch.cat(
            [make_batch(MODEL, clips, [i], choices(shift=shift)).sigmas for i in range(400)]
        )
        s = (sigmas / (shift - (shift - 1) * sigmas)).sort().values
        steps = torch.arange(401) / 400
        distance = torch.maximum((s - steps[:-1]).abs(), (s - steps[1:]).abs()).max()
        assert distance < 1.95 / 400**0.5
        assert 0 < sigmas.min() and sigmas.max() < 1


def test_references_are_dropped_and_gated(clips: EncodedClips) -> None:
    batches = [make_batch(MODEL, clips, [i], choices()) for i in range(200)]
    unseen = [not batch.tokens.any() for batch in batches]
    assert 0.15 < sum(unseen) / 200 < 0.36  # 0.25, and 3.4 standard deviations
    for batch, dropped in zip(batches, unseen, strict=True):
        if not dropped:
            inside = token_mask(batch.condition[:, :4], GRID, rule="any")
            assert torch.equal(batch.tokens, inside)
    everywhere = [make_batch(MODEL, clips, [i], choices(mask_gate=False)).tokens for i in range(40)]
    assert {x.float().mean().item() for x in everywhere} == {0.0, 1.0}


def visible(condition: Tensor) -> list[bool]:
    """Which latent frames have nothing left to generate."""
    return [not bool(frame.any()) for frame in condition[:4].transpose(0, 1)]


def test_given_frames(tmp_path: Path) -> None:
    base, dataset = small_base(), Noise(2, frames=49)
    clips = encode_dataset(base, dataset, tmp_path / "latents", given=("none",))
    draw = torch.Generator().manual_seed(0)

    def patterns(which: Any) -> list[list[bool]]:
        return [visible(given_condition(MODEL, clips, i % 2, which, draw)) for i in range(100)]

    assert not any(any(pattern) for pattern in patterns("none"))
    assert all(pattern == [True] + [False] * 12 for pattern in patterns("first"))
    for pattern in patterns("near"):
        shown_frames = "".join("x" if shown else "." for shown in pattern)
        assert "...." not in shown_frames and "x" in shown_frames
    counts = [sum(pattern) for pattern in patterns("mixed")]
    assert 0 in counts and max(counts) > 4 and sum(counts) / 100 < 6.5


def test_a_given_frame_is_what_the_base_would_have_encoded(tmp_path: Path) -> None:
    base, dataset = small_base(), Noise(1)
    clips = encode_dataset(base, dataset, tmp_path / "latents", given=("none",))
    sample = dataset[0]
    frames = sample.clip.frames
    wanted = build_condition(frames, sample.mask, base.encode, first_frame=frames[0])
    condition = given_condition(MODEL, clips, 0, "first")
    assert torch.equal(condition, wanted.channels[0].half().float())


def test_frames_that_were_not_encoded_are_refused(clips: EncodedClips) -> None:
    with pytest.raises(ValueError, match=r"given: .*first_last"):
        make_batch(MODEL, clips, [0], choices(given={"first_last": 1.0}))
    assert conditions_for(small_base(), {"near", "first"}) == ("none",)
    assert conditions_for(small_base(), {"first_last"}) == ("none", "first_last")


# ------------------------------------------------------------------------------------ the settings


def test_learning_rate() -> None:
    config = TrainConfig(steps=100, warmup=10, decay=0.5, learning_rate=2.0)
    rates = [learning_rate_at(config, step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[10:51] == pytest.approx([2.0] * 41)
    assert rates[75] == pytest.approx(2.0 * 0.55)
    assert 0.2 < rates[99] < 0.24
    plain = TrainConfig(steps=100, warmup=0, decay=0.0, learning_rate=2.0)
    assert {learning_rate_at(plain, step) for step in range(100)} == {2.0}


def test_what_another_length_means() -> None:
    config = TrainConfig(steps=200, warmup=10, decay=0.5, learning_rate=2.0)
    assert changed_length(config, 200, 50) is None
    early = changed_length(config, 100, 50)
    assert early is not None and "100 before, now 200" in early
    assert "as if it had been so from the start" in early and "took" not in early
    late = changed_length(config, 100, 100)
    assert late is not None
    assert "Steps 52 to 100 took the learning rate of 100 steps, at last 0.236" in late
    assert "from step 101 on it is that of 200, now 2." in late
    plain = TrainConfig(steps=200, decay=0.0)
    assert "took" not in (changed_length(plain, 100, 100) or "")


def test_types_that_wait_for_no_torch_are_the_models() -> None:
    assert set(get_args(config_module.MaskRule)) == set(get_args(MaskRule))
    assert set(get_args(Given)) < set(get_args(config_module.GivenFrames))


def test_settings_from_yaml_and_flags(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("learning_rate: 1e-3\nshift: 3\nsteps: 7\nflow_gate: null\nschedule: -1\n")
    config = read_config(
        path, {"given": "none=0.25,first=0.75", "steps": "9", "micro_batch": "none"}
    )
    assert (config.learning_rate, config.shift, config.steps) == (1e-3, 3.0, 9)
    assert (config.flow_gate, config.schedule, config.micro_batch) == (None, -1.0, None)
    assert list(config.given.items()) == [("none", 0.25), ("first", 0.75)]
    path.write_text(yaml.safe_dump(config.to_dict(), sort_keys=False))
    assert read_config(path, {}) == config
    assert parse_setting("given", "near") == {"near": 1.0}
    assert parse_setting("schedule", "0,1,2.5") == [0.0, 1.0, 2.5]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": "many"}, "steps: got 'many', wanted an integer"),
        ({"steps": True}, "steps: got True"),
        ({"steps": 0}, "steps: got 0, wanted at least 1"),
        ({"learning_rate": "fast"}, "learning_rate: .*a number"),
        ({"learning_rate": "inf"}, "learning_rate: got inf"),
        ({"flow_gate": "row"}, "flow_gate: .*token, sequence or none"),
        ({"schedule": "papre"}, "schedule: .*papre"),
        ({"given": "first=0.5"}, "given: .*add up to 1"),
        ({"given": "last=1"}, "given: .*last"),
        ({"given": "first=x"}, "given: .*shares"),
        ({"queries_keys": "no"}, "queries_keys: .*true or false"),
        ({"frames": 8}, "frames: .*1 \\+ 4 n"),
        ({"width": 100}, "width"),
        ({"micro_batch": 9}, "micro_batch"),
        ({"mask": "round"}, "mask: "),
        ({"stage": "base", "base_dtype": "bfloat16"}, "base_dtype"),
        ({"train_base": True, "base_dtype": "bfloat16"}, "base_dtype"),
        ({"stage": "base", "video_rank": 2}, "stage: "),
        ({"train_base": True, "video_rank": 2}, "train_base: "),
        ({"speed": 1}, "unknown settings .*speed"),
    ],
)
def test_settings_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_config(None, changes)


def test_config_files_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="config"):
        read_config(tmp_path / "none.yaml", {})
    (tmp_path / "list.yaml").write_text("- steps\n")
    with pytest.raises(ValueError, match="list, wanted a mapping"):
        read_config(tmp_path / "list.yaml", {})
    (tmp_path / "broken.yaml").write_text("steps: [\n")
    with pytest.raises(ValueError, match="no YAML"):
        read_config(tmp_path / "broken.yaml", {})


def test_what_makes_another_run() -> None:
    now = small_config()
    before = now.to_dict()
    assert changed_settings(before, now) == []
    assert changed_settings(before | {"keep": 9, "micro_batch": 1, "parallel": "fsdp"}, now) == []
    assert changed_settings(before | {"seed": 6}, now) == ["seed 6 -> 0"]
    assert changed_settings(before | {"steps": 3}, now) == [], "a run may be made longer"
    backwards = dict(reversed(before["given"].items()))
    assert changed_settings(before | {"given": backwards}, now)[0].startswith("given ")
    # A field that is newer than the run had its default's effect.
    older = {name: value for name, value in before.items() if name != "video_rank"}
    assert changed_settings(older, now) == []
    assert changed_settings(older, small_config(video_rank=2)) == ["video_rank 0 -> 2"]
