"""Where the commands write: what cannot be written is refused before the work, what fails leaves nothing."""

import os

import pytest
from lowbit.cli import output


@pytest.mark.parametrize(
    "below,words",
    [
        ("file", "this is a file, expected a directory name"),
        ("full", "this directory is not empty; choose another or add --overwrite"),
        ("file/out", "file is not a directory"),
        ("file/deeper/out", "file is not a directory"),
        ("dangling/out", "dangling is not a directory"),
    ],
)
def test_a_directory_that_cannot_be_made_is_refused(tmp_path, below, words):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("kept")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=rf"^OUT .*{words}$"):
        output.check_directory(tmp_path / below, "OUT", overwrite=False)
    assert (tmp_path / "file").read_text() == (tmp_path / "full" / "a").read_text() == "kept"


def test_a_directory_that_may_not_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # whoever runs the tests may write anywhere
    with pytest.raises(ValueError, match=rf"^OUT .*: the directory {tmp_path} is not writable$"):
        output.check_directory(tmp_path / "new" / "deep", "OUT", overwrite=False)
    with pytest.raises(ValueError, match=rf"^--json .*: the directory {tmp_path} is not writable$"):
        output.check_output(str(tmp_path / "a.json"), "--json")


def test_a_directory_that_can_be_made_is_accepted_and_not_made(tmp_path):
    (tmp_path / "empty").mkdir()
    for below in ("new", "a/b/c", "empty"):
        output.check_directory(tmp_path / below, "OUT", overwrite=False)
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize("out", ["model", ".", "link", "model/../model"])
def test_a_directory_is_not_made_where_the_model_lies(tmp_path, out):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    model = str(tmp_path / "model")
    with pytest.raises(ValueError, match=r"^OUT .*: model .* lies there; expected another directory$"):
        output.check_directory(tmp_path / out, "OUT", True, model)
    output.check_directory(tmp_path / "model" / "quantised", "OUT", False, model)
    output.check_directory(tmp_path / "other", "OUT", True, "a-name/on-the-hub")


def test_a_link_stays_and_leads_to_the_new_directory(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "old").write_text("replaced")
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    with output.whole_directory(tmp_path / "link", overwrite=True) as folder:
        folder.mkdir()
        (folder / "new").write_text("there")
    assert (tmp_path / "link").is_symlink()
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["disk", "link", "new"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_directory_appears_whole_or_not_at_all(tmp_path, overwrite):
    out = tmp_path / "out"
    if overwrite:
        out.mkdir()
        (out / "old").write_text("kept")
    with pytest.raises(OSError, match="disk full"), output.whole_directory(out, overwrite) as folder:
        folder.mkdir()
        (folder / "part").write_text("lost")
        raise OSError("disk full")
    assert sorted(p.name for p in tmp_path.rglob("*")) == (["old", "out"] if overwrite else [])
    with output.whole_directory(out, overwrite) as folder:
        folder.mkdir()
        (folder / "new").write_text("there")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["new", "out"]
