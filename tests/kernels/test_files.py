"""Files and folders are whole or absent, whatever stops the program."""

from __future__ import annotations

from pathlib import Path

import pytest

from genhoi_kernels.files import remove_folder, remove_unfinished, whole_file, whole_folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_keeps_its_suffix_while_it_is_written(tmp_path: Path) -> None:
    with whole_file(tmp_path / "new" / "clip.mp4") as temporary:
        assert temporary.parent == tmp_path / "new" and temporary.suffix == ".mp4"
        temporary.write_text("whole")
        assert names(tmp_path / "new") == [temporary.name]
    assert names(tmp_path / "new") == ["clip.mp4"]


def test_a_folder_is_whole_or_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "step-000001"
    with whole_folder(target) as temporary:
        (temporary / "old").write_text("old")
    with pytest.raises(KeyboardInterrupt), whole_folder(target) as temporary:
        (temporary / "new").write_text("ne")
        raise KeyboardInterrupt
    assert names(tmp_path) == ["step-000001"] and names(target) == ["old"]
    with whole_folder(target) as temporary:
        (temporary / "new").write_text("new")
    assert names(tmp_path) == ["step-000001"] and names(target) == ["new"]


def test_the_old_folder_comes_back_where_the_new_one_cannot_be_put(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "frames"
    with whole_folder(target) as temporary:
        (temporary / "old").write_text("old")
    replace, calls = Path.replace, []

    def second_fails(source: Path, place: Path) -> None:
        calls.append(place)
        if len(calls) == 2:
            raise OSError("broken")
        replace(Path(source), place)

    monkeypatch.setattr("os.replace", second_fails)
    with pytest.raises(OSError, match="broken"), whole_folder(target) as temporary:
        (temporary / "new").write_text("new")
    assert names(tmp_path) == ["frames"] and names(target) == ["old"]


def test_what_killed_programs_left_is_removed(tmp_path: Path) -> None:
    left = [".clip.01234567.tmp.mp4", ".other.89abcdef.tmp.npy", ".latents.00000000.tmp"]
    kept = ["clip.mp4", ".clip.mp4", ".clip.tmp.mp4", "clip.01234567.tmp.mp4", ".x.0123.tmp"]
    for name in [*left[:2], *kept]:
        (tmp_path / name).write_text("")
    (tmp_path / left[2]).mkdir()
    (tmp_path / left[2] / "array.npy").write_text("")

    remove_unfinished(tmp_path, target=tmp_path / "clip.mp4")
    assert names(tmp_path) == sorted([*kept, *left[1:]])
    remove_unfinished(tmp_path, target=tmp_path / "latents")
    assert names(tmp_path) == sorted([*kept, left[1]])
    remove_unfinished(tmp_path)
    assert names(tmp_path) == sorted(kept)
    remove_unfinished(tmp_path / "nowhere")


def test_a_folder_is_out_of_sight_before_it_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "step-000001"
    folder.mkdir()
    seen: list[bool] = []
    monkeypatch.setattr("shutil.rmtree", lambda path: seen.append(folder.exists()))
    remove_folder(folder)
    assert seen == [False]
    monkeypatch.undo()
    remove_unfinished(tmp_path)
    assert names(tmp_path) == []
