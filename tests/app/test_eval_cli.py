"""`genhoi eval`: files in, files out; learned metrics on tiny random models; every refusal."""

from __future__ import annotations

import csv
import json
import math
import shlex
import sys
import types
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from support.command_lines import command_line
from torch import Tensor, nn

import genhoi
from genhoi import media
from genhoi.cli import main
from genhoi.evaluation import Case, evaluate
from genhoi.evaluation.columns import COLUMNS
from genhoi.evaluation.figure import draw_evaluation
from genhoi.evaluation.learned_metrics import Clip2Vector, Lpips, Models, Video2Vector
from genhoi.evaluation.summary import over_cases, summarise
from genhoi.media import Clip

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning")

F, H, W = 6, 32, 48
TEN_DB = 28.1308  # a uniform error of 10
SIXTH = 10 * math.log10(6)


def scene(seed: int = 0) -> Tensor:
    """Noise that an error of 10 does not take out of 0 to 255."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(60, 200, (F, H, W, 3), generator=draw, dtype=torch.uint8)


def region() -> Tensor:
    """Empty in frame 0, then moving right."""
    mask = torch.zeros(F, H, W, dtype=torch.bool)
    for i in range(1, F):
        mask[i, 8:24, 4 * i : 4 * i + 16] = True
    return mask


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A truth, a result that is 10 brighter inside the mask, masks, a picture; all lossless."""
    truth, mask = scene(), region()
    result = torch.where(mask[..., None], truth + 10, truth)
    media.write_clip(tmp_path / "truth", Clip(truth))
    media.write_clip(tmp_path / "result", Clip(result))
    media.write_mask(tmp_path / "mask", mask)
    small = mask.clone()
    small[:, :12] = False
    media.write_mask(tmp_path / "object_mask", small)
    media.write_image(tmp_path / "object.png", truth[1, 8:24, 4:20])
    return tmp_path


def arguments(files: Path, *more: str, result: str = "result", truth: str = "truth") -> list[str]:
    paths = {"result": files / result, "truth": files / truth}
    return [*command_line("eval", **paths, mask=files / "mask", out=files / "out"), *more]


def run(*words: str) -> Result:
    return CliRunner().invoke(main, words)


def record_of(files: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((files / "out" / "eval.json").read_text("utf-8"))
    return record


def rows_of(files: Path) -> list[dict[str, str]]:
    with (files / "out" / "eval.csv").open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def refused(result: Result, *words: str) -> None:
    """One sentence, no traceback, exit code above 0."""
    assert result.exit_code != 0
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.output.strip().splitlines()[-1].startswith("Error: "), result.output
    for word in words:
        assert word in result.output, result.output


# ------------------------------------------------------------------------------------- the whole


def test_a_case_of_folders(files: Path) -> None:
    more = ["--object", f"{files}/object.png", "--object-mask", f"{files}/object_mask"]
    result = run(*arguments(files, *more))
    assert result.exit_code == 0, result.output
    for phrase in (
        "inside mask: empty in 1 of 6 frames",
        "outside mask: identical in 6 of 6 frames",
        "lpips: not measured: needs",
        "clip: not measured: needs",
        "fvd: not measured: needs",
        "35.91",
    ):
        assert phrase in result.output
    out = files / "out"
    assert sorted(p.name for p in out.iterdir()) == ["eval.csv", "eval.json", "eval.png"]
    with Image.open(out / "eval.png") as image:
        assert image.format == "PNG"
    rows = rows_of(files)
    assert [row["frame"] for row in rows] == [str(i) for i in range(F)]
    assert rows[0]["ssim_mask"] == rows[0]["edges_mask"] == "" and rows[0]["psnr_frame"] == "100"
    assert "psnr_mask" not in rows[0] and "texture" not in rows[0]
    for row in rows[1:]:
        # A sixth of the frame is off by 10.
        assert float(row["psnr_frame"]) == pytest.approx(TEN_DB + SIXTH, abs=1e-3)
        # Lighter, but with all its edges; that of the mask itself is new.
        assert 0.9 < float(row["edges_mask"]) <= float(row["edges_object"]) <= 1
        assert row["psnr_background"] == "100" and row["lpips_mask"] == ""
        assert 0 < float(row["colour"]) < float(row["colour_truth"]) <= 1
        assert float(row["ssim_mask"]) < 1 and float(row["edges_background"]) > 0.9
        assert float(row["drift"]) >= 0 and row["lpips_mask"] == ""
    record = record_of(files)
    metrics = record["cases"][0]["metrics"]
    mask = metrics["ssim_mask"]
    assert mask["frames"] == 5 and mask["empty"] == 1 and mask["capped"] == 0
    alone = float(rows[1]["ssim_mask"])
    assert mask["first"] == pytest.approx(alone, abs=1e-6), "the mean of frame 1 alone"
    assert metrics["psnr_background"]["capped"] == 6
    assert set(record["not_measured"]) == {"lpips", "clip", "fvd"} and record["fvd"] is None
    mean = {"mean": mask["mean"], "standard_error": None, "cases": 1}
    assert record["mean_over_cases"]["ssim_mask"]["mean"] == mean
    inputs = record["cases"][0]["inputs"]
    assert set(inputs) == {"result", "truth", "mask", "object", "object_mask"}
    assert all(len(file["sha256"]) == 64 for file in inputs.values())


def test_the_record_repeats_it(files: Path) -> None:
    assert run(*arguments(files, "--frames", "4")).exit_code == 0
    first = record_of(files)
    command = shlex.split(first["repeat"])
    assert command[:2] == ["genhoi", "eval"]
    assert run(*command[1:], "--force").exit_code == 0
    assert record_of(files) == first
    assert "first 4 of 6" in " ".join(first["cases"][0]["notes"])
    assert first["not_measured"]["colour"].endswith("(--object)")


def test_videos(files: Path) -> None:
    media.write_clip(files / "truth.mp4", Clip(scene()))
    media.write_mask(files / "mask.mp4", region())
    result = run(*arguments(files, "--mask", f"{files}/mask.mp4", truth="truth.mp4"))
    assert result.exit_code == 0, result.output
    assert len(rows_of(files)) == F
    assert record_of(files)["cases"][0]["metrics"]["psnr_background"]["mean"] < 60, "coding costs"


def test_several_cases(files: Path) -> None:
    media.write_clip(files / "short", Clip(scene(1)[:4]))
    media.write_clip(files / "shorter", Clip(scene(2)[:4]))
    media.write_mask(files / "one", region()[3:4])
    table = files / "cases.csv"
    table.write_text(
        "name,result,truth,mask,object,object_mask\n"
        "first,result,truth,mask,object.png,object_mask\n"
        ",short,shorter,one,,\n",
        encoding="utf-8-sig",
    )
    result = run("eval", "--cases", str(table), "--out", f"{files}/out")
    assert result.exit_code == 0, result.output
    assert "2 cases" in result.output and "±" in result.output
    rows = rows_of(files)
    frames = [("first", str(i)) for i in range(6)] + [("short", str(i)) for i in range(4)]
    assert [(row["case"], row["frame"]) for row in rows] == frames
    record = record_of(files)
    a, b = (case["metrics"]["psnr_frame"]["mean"] for case in record["cases"])
    psnr = record["mean_over_cases"]["psnr_frame"]["mean"]
    assert psnr["mean"] == pytest.approx((a + b) / 2)
    assert psnr["standard_error"] == pytest.approx(abs(a - b) / 2)
    assert record["mean_over_cases"]["colour"]["mean"]["cases"] == 1


def test_a_scaled_result(files: Path) -> None:
    half = media.resize_clip(Clip(scene()), (16, 16))
    media.write_clip(files / "half", half)
    refused(run(*arguments(files, result="half")), "is 16x16", "48x32", "--fit")
    result = run(*arguments(files, "--fit", result="half"))
    assert result.exit_code == 0, result.output
    assert "scaled and cropped from 48x32 to 16x16" in result.output
    assert record_of(files)["cases"][0]["metrics"]["psnr_frame"]["mean"] == 100
    media.write_clip(files / "odd", Clip(scene()[:, :15, :17]))
    refused(run(*arguments(files, "--fit", "--force", result="odd")), "17x15", "multiples")


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 40, 40), (2, 7, 5)])
def test_small_and_odd(size: tuple[int, int, int], tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 245, (*size, 3), generator=draw, dtype=torch.uint8)
    mask = torch.ones(size, dtype=torch.bool)
    case = Case("small", Clip(truth + 10), Clip(truth), mask, object=truth[0])
    evaluation = evaluate([case])
    draw_evaluation(tmp_path / "eval.png", evaluation)
    summary = summarise("psnr_frame", evaluation.cases[0].curves["psnr_frame"])
    assert summary.mean == pytest.approx(TEN_DB, abs=1e-3)
    assert summarise("psnr_background", evaluation.cases[0].curves["psnr_background"]).mean is None


# ----------------------------------------------------------------------------------- from Python


def test_evaluate_in_chunks_is_evaluate_at_once() -> None:
    truth = torch.cat([scene(i) for i in range(4)])
    result = truth.flip(-1)
    mask = torch.cat([region()] * 4)
    calls = []
    case = Case("long", Clip(result), Clip(truth), mask, object=truth[0])
    evaluation = genhoi.evaluate([case], progress=lambda *call: calls.append(call))
    assert calls == [("long", n, 24) for n in (8, 16, 24)]
    short = evaluate([Case("part", Clip(result[7:9]), Clip(truth[7:9]), mask[7:9], truth[0])])
    for name, curve in short.cases[0].curves.items():
        if name.startswith("drift"):
            continue  # from another first frame
        torch.testing.assert_close(
            evaluation.cases[0].curves[name][7:9], curve, equal_nan=True, rtol=0, atol=1e-12
        )
    assert list(evaluation.cases[0].curves) == [
        name for name in COLUMNS if name in short.cases[0].curves
    ]
    worst = evaluation.cases[0].worst
    assert worst is not None
    assert worst.edges == float(evaluation.cases[0].curves["edges_mask"].nan_to_num(999).min())
    assert torch.equal(worst.truth, truth[worst.index])


def test_summaries() -> None:
    nan = float("nan")
    summary = summarise("lpips_frame", torch.tensor([nan, 0.2, 0.4, 0.1], dtype=torch.float64))
    assert summary.worst == pytest.approx(0.4) and summary.worst_frame == 2, "lower is better"
    assert summary.frames == 3 and summary.empty == 1 and summary.capped == 0
    summary = summarise("ssim_mask", torch.full((3,), nan, dtype=torch.float64))
    assert summary.mean is None and summary.worst_frame is None and summary.empty == 3
    assert over_cases([None, None]) is None
    spread = over_cases([1.0, None, 3.0])
    assert spread is not None and (spread.mean, spread.standard_error, spread.cases) == (2, 1, 2)


def test_refusals_from_python() -> None:
    truth, mask = Clip(scene()), region()
    with pytest.raises(ValueError, match="got none, want at least one"):
        evaluate([])
    with pytest.raises(ValueError, match="name a twice"):
        evaluate([Case("a", truth, truth, mask)] * 2)
    with pytest.raises(ValueError, match="nothing is cut or scaled"):
        Case("a", Clip(truth.frames[:5]), truth, mask)
    with pytest.raises(TypeError, match=r"mask: got torch.uint8, want torch.bool"):
        Case("a", truth, truth, mask.to(torch.uint8))
    with pytest.raises(ValueError, match=r"object_mask: got \(5, 32, 48\)"):
        Case("a", truth, truth, mask, object_mask=mask[:5])


# ------------------------------------------------------------------------------- learned metrics


class TinyI3D(nn.Module):
    """Takes what the usual file takes, and fails where it was not asked for features."""

    def forward(
        self, x: Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False
    ) -> Tensor:
        assert not rescale and not resize and return_features
        return torch.cat([x.mean(dim=[2, 3, 4]), x.square().mean(dim=[2, 3, 4])], dim=1)


class PlainI3D(nn.Module):
    """Without those arguments, and for clips of 5 frames or more only."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool3d(x, [5, 224, 224]).mean(dim=[2, 3, 4])


def save_script(path: Path, module: nn.Module) -> Path:
    torch.jit.script(module).save(str(path))
    return path


def save_clip(folder: Path) -> Path:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = transformers.CLIPConfig(
        text_config={**sizes, "vocab_size": 32, "max_position_embeddings": 8},
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    return folder


class StandInLpips(nn.Module):
    """The constructor, the call and the first weight of lpips.LPIPS, as version 0.1.4 has them."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        want = {"pretrained": False, "pnet_rand": True, "spatial": True, "verbose": False}
        assert options == {**want, "net": "alex"}, "everything else would download"
        self.net = nn.ModuleDict({"slice1": nn.Sequential(nn.Conv2d(3, 1, 11))})

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().mean(dim=1, keepdim=True) * next(self.net.parameters()).mean()


@pytest.fixture
def lpips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights for the package's stand-in, which stands where it would be imported."""
    module = types.ModuleType("lpips")
    module.LPIPS = StandInLpips  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", module)
    weights = {"net.slice1.0.weight": torch.full((1, 3, 11, 11), 2.0)}
    torch.save({**weights, "net.slice1.0.bias": torch.zeros(1)}, tmp_path / "lpips.pt")
    return tmp_path / "lpips.pt"


def test_learned_metrics(files: Path, lpips: Path) -> None:
    table = files / "cases.csv"
    table.write_text(
        "name,result,truth,mask,object\na,result,truth,mask,object.png\nb,truth,truth,mask,\n"
    )
    command = command_line(
        "eval",
        cases=table,
        out=files / "out",
        lpips_weights=lpips,
        clip_model=save_clip(files / "clip"),
        fvd_weights=save_script(files / "i3d.pt", TinyI3D()),
    )
    result = run(*command)
    assert result.exit_code == 0, result.output
    record = record_of(files)
    assert record["not_measured"] == {} and record["fvd"] > 0
    rows = rows_of(files)
    # 10 levels of 127.5, the same in all channels, and weights of 2.
    assert float(rows[1]["lpips_mask"]) == pytest.approx(20 / 127.5, rel=1e-5)
    assert float(rows[1]["lpips_background"]) == 0
    assert rows[0]["clip"] == "" and float(rows[1]["clip_truth"]) == pytest.approx(1, abs=1e-4)
    assert float(rows[1]["clip"]) < 1 and rows[6]["clip"] == ""
    assert "LPIPS" in result.output and "FVD" in result.output


def test_fvd_of_one_case_is_not_measured(files: Path) -> None:
    weights = save_script(files / "i3d.pt", TinyI3D())
    result = run(*arguments(files, "--fvd-weights", str(weights)))
    assert result.exit_code == 0, result.output
    assert "at least 2 cases; there is 1" in result.output
    assert record_of(files)["fvd"] is None


def test_video_features(tmp_path: Path) -> None:
    network = Video2Vector(save_script(tmp_path / "plain.pt", PlainI3D()))
    frames = torch.full((7, 20, 30, 3), 255, dtype=torch.uint8)
    torch.testing.assert_close(network(frames), torch.ones(3))
    with pytest.raises(ValueError, match="does not take a clip of 4 frames"):
        network(frames[:4])
    features = Video2Vector(save_script(tmp_path / "i3d.pt", TinyI3D()))(frames)
    assert features.shape == (6,)


def test_clip_embeddings(tmp_path: Path) -> None:
    embed = Clip2Vector(save_clip(tmp_path / "clip"))
    embeddings = embed([scene()[0], scene()[0], scene(1)[0, :20, :11]])
    assert embeddings.shape == (3, 8)
    torch.testing.assert_close(embeddings[0], embeddings[1])
    assert float(embeddings[0] @ embeddings[2]) < 1 - 1e-4
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(3))


def test_models_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (Lpips, Video2Vector):
        with pytest.raises(FileNotFoundError, match="there is no file"):
            kind(tmp_path / "none")
    with pytest.raises(NotADirectoryError, match="there is no folder"):
        Clip2Vector(tmp_path / "none")
    (tmp_path / "text").write_text("text")
    with pytest.raises(ValueError, match="no TorchScript file"):
        Video2Vector(tmp_path / "text")
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ImportError, match="pip install lpips"):
        Lpips(tmp_path / "text")
    assert Models() == Models(None, None, None)


def test_weights_of_another_kind(tmp_path: Path, lpips: Path) -> None:
    (tmp_path / "text").write_text("text")
    torch.save({"net.slice1.0.weight": torch.zeros(1, 3, 11, 11)}, tmp_path / "part.pt")
    torch.save([1], tmp_path / "list.pt")
    for name in ("text", "part.pt", "list.pt"):
        with pytest.raises(ValueError, match=r"not the state dict of a complete lpips\.LPIPS"):
            Lpips(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds none that loads"):
        Clip2Vector(tmp_path / "empty")


# -------------------------------------------------------------------------------------- refusals


def test_other_lengths(files: Path) -> None:
    media.write_clip(files / "five", Clip(scene()[:5]))
    refused(
        run(*arguments(files, result="five")),
        "has 5 frames, want 6",
        "1 + 4 n frames",
        "here the last 1 of 6",
        "--frames result",
    )
    media.write_clip(files / "four", Clip(scene()[:4]))
    result = run(*arguments(files, result="four"))
    refused(result, "has 4 frames, want 6")
    assert "1 + 4 n" not in result.output
    refused(run(*arguments(files, truth="four")), "has 6 frames, want 4", "--frames 4")
    refused(run(*arguments(files, "--frames", "5", truth="four")), "has only 4 frames, want 5")
    for frames in ("result", "5"):
        result = run(*arguments(files, "--frames", frames, "--force", result="five"))
        assert result.exit_code == 0, result.output
        assert len(rows_of(files)) == 5 and "first 5 of 6" in result.output
    for frames in ("0", "-1", "many"):
        refused(run(*arguments(files, "--frames", frames, "--force")), "want a number from 1 on")
    media.write_mask(files / "short", region()[:3])
    refused(run(*arguments(files, "--force", "--mask", f"{files}/short")), "has 3 frames; want 6")


def test_masks_of_another_size_are_scaled_and_said(files: Path) -> None:
    media.write_mask(files / "large", torch.ones(1, 2 * H, 2 * W, dtype=torch.bool))
    result = run(*arguments(files, "--mask", f"{files}/large"))
    assert result.exit_code == 0, result.output
    assert "The mask is scaled from 96x64 to 48x32" in result.output


def test_baselines(files: Path) -> None:
    media.write_clip(files / "source", Clip(scene(7)))
    media.write_clip(files / "flat", Clip(torch.full_like(scene(), 130)))
    more = ["--source", f"{files}/source", "--baseline", f"flat colour={files}/flat"]
    result = run(*arguments(files, *more))
    assert result.exit_code == 0, result.output
    for words in ("Beside baselines", "unedited source", "flat colour", "How to read it"):
        assert words in result.output
    rows = rows_of(files)
    names = ["result", "unedited source", "flat colour"]
    assert [row["case"] for row in rows] == [name for name in names for _ in range(F)]
    record = record_of(files)
    assert [case["name"] for case in record["cases"]] == ["result"]
    assert [case["name"] for case in record["baselines"]] == names[1:]
    assert record["how_to_read_it"].startswith("How to read it")
    edges = [
        case["metrics"]["edges_mask"]["mean"] for case in record["cases"] + record["baselines"]
    ]
    assert edges[0] > 0.9 and abs(edges[1]) < 0.3 and abs(edges[2]) < 0.1
    mean = record["mean_over_cases"]["edges_mask"]["mean"]
    assert mean["mean"] == edges[0], "baselines are in no mean"
    command = shlex.split(record["repeat"])
    assert command.count("--baseline") == 1 and f"flat colour={files}/flat" in command


def test_the_source_of_an_edit_is_found(files: Path) -> None:
    media.write_clip(files / "source.mp4", Clip(scene(7)))
    made = files / "made"
    made.mkdir()
    media.write_clip(made / "edited.mp4", Clip(scene()))

    def baselines(record: object) -> list[str]:
        (made / "edit.json").write_text(json.dumps(record))
        result = run(*arguments(files, "--force", result="made/edited.mp4"))
        assert result.exit_code == 0, result.output
        return [case["name"] for case in record_of(files)["baselines"]]

    def written(path: Path, **more: object) -> dict[str, object]:
        return {"inputs": {"video": {"path": str(path), "sha256": media.digest(path)}}, **more}

    region = {"x": 16, "y": 0, "width": 16, "height": 16}
    assert baselines(written(files / "source.mp4", crop=region)) == ["unedited source"]
    assert baselines(written(files / "truth")) == [], "the truth itself is no baseline"
    assert baselines(written(files / "source.mp4") | {"inputs": {}}) == []
    assert baselines([]) == []
    other = written(files / "source.mp4")
    media.write_clip(files / "source.mp4", Clip(scene(8)), overwrite=True)
    assert baselines(other) == [], "the file is another one now"


def test_baselines_are_refused(files: Path) -> None:
    media.write_clip(files / "short", Clip(scene()[:4]))
    media.write_clip(files / "small", Clip(scene()[:, :16, :16]))
    for text, words in (
        ("flat", "got flat, want NAME=CLIP"),
        (f"result={files}/truth", "got the name result twice"),
        (f"short={files}/short", "has 4 frames, want at least 6"),
        (f"small={files}/small", "is 16x16, want 48x32"),
        (f"none={files}/none", "there is no file or folder"),
    ):
        refused(run(*arguments(files, "--baseline", text)), words)
    table = files / "cases.csv"
    table.write_text("result,truth,mask\nresult,truth,mask\ntruth,truth,mask\n")
    several = command_line("eval", cases=table, out=files / "out", source=files / "truth")
    refused(run(*several), "--source: got it beside --cases")
    assert not (files / "out").exists()


@pytest.mark.parametrize("name", ["eval.csv", "eval.png", "eval.json"])
def test_results_are_not_overwritten(
    files: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (files / "out").mkdir()
    (files / "out" / name).write_text("kept")
    with monkeypatch.context() as patched:
        patched.setattr("genhoi.cli.eval_run.evaluate", lambda *_, **__: pytest.fail("long work"))
        refused(run(*arguments(files)), f"{name} exists already", "--force")
    assert (files / "out" / name).read_text() == "kept"
    assert sorted(p.name for p in (files / "out").iterdir()) == [name]
    assert run(*arguments(files, "--force")).exit_code == 0
    assert (files / "out" / name).read_bytes() != b"kept"


def test_one_json_object_on_standard_output(files: Path) -> None:
    result = run(*arguments(files, "--json", "--log-file", str(files / "log")))
    assert result.exit_code == 0
    said = json.loads(result.stdout)
    written = record_of(files)
    assert {name: said[name] for name in written} == written
    assert said["files"] == [str(files / "out" / f"eval.{kind}") for kind in ("csv", "png", "json")]
    assert "--json" not in written["repeat"]
    assert "PSNR" in (files / "log").read_text() and "PSNR" in result.stderr
    result = run(*arguments(files, "--json"))
    assert result.exit_code == 1
    assert "exists already" in json.loads(result.stdout)["error"]


def test_missing_inputs(files: Path) -> None:
    refused(run(*arguments(files, result="none")), "there is no file or folder", "none")
    refused(run("eval", "--result", "x", "--mask", "y"), "--truth: got none")
    refused(run(*arguments(files, "--object", f"{files}/none.png")), "there is no file or folder")
    refused(run(*arguments(files, "--cases", "x.csv")), "--result: got it beside --cases")
    refused(run(*arguments(files, "--clip-model", f"{files}/none")), "there is no folder")
    (files / "folder" / "eval.csv").mkdir(parents=True)
    refused(run(*arguments(files), "--out", f"{files}/folder"), "is a folder, want a free file")
    assert not (files / "out").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "there is no file"),
        ("", "has no column result"),
        ("result,truth,mask\n", "has no row"),
        ("result,truth\na,b\n", "has no column mask"),
        ("result,truth,mask,prompt\na,b,c,d\n", "has the column prompt"),
        ("result,truth,mask\nresult,,mask\n", "line 2: truth is empty"),
        ("result,truth,mask\nresult,truth,mask\nresult,truth,mask\n", "the name result twice"),
        ("result,truth,mask\nresult,truth,mask\nmask,none,mask\n", "no file or folder"),
    ],
)
def test_tables_that_are_refused(files: Path, text: str | None, words: str) -> None:
    table = files / "cases.csv"
    if text is not None:
        table.write_text(text)
    refused(run("eval", "--cases", str(table), "--out", f"{files}/out"), words)
    assert not (files / "out").exists()


def test_rates_may_differ(files: Path) -> None:
    media.write_clip(files / "fast.gif", Clip(scene(), Fraction(50)))
    result = run(*arguments(files, result="fast.gif"))
    assert result.exit_code == 0, result.output
