"""Where a picture or a page cannot be put: the error names it before anything is drawn."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure

import scvi_lfm as lfm

LONG = "x" * 300
# ways to a file that cannot be, and what is said of it; {} is a folder of the test
IMPOSSIBLE = {
    "no folder": ("{}/no/such/FILE", "there is no folder '{}/no/such' to put 'FILE' into"),
    "a file as folder": ("{}/text.txt/FILE", "'{}/text.txt' is a file, and no folder to put 'FILE' into"),
    "a folder": ("{}/folder.FILE", "'{}/folder.FILE' is a folder. Name a file in it"),
    "a long name": (
        f"{{}}/{'x' * 300}FILE",
        f"'{{}}/{'x' * 300}FILE' cannot be written (File name too long). Name ano",
    ),
}
CALLS = {
    "save": ("figure.png", lambda adata, path: lfm.pl.factors(adata, show=False, save=path)),
    "path": ("page.html", lambda adata, path: lfm.pl.explorer(adata, path, basis="X_lfm", dimensions=(0, 1))),
}


@pytest.mark.parametrize("way", IMPOSSIBLE)
@pytest.mark.parametrize("argument", CALLS)
def test_a_place_where_no_file_can_be(argument, way, adata, tmp_path):
    name, call = CALLS[argument]
    (tmp_path / "text.txt").write_text("no folder")
    (tmp_path / f"folder.{name}").mkdir()
    path, message = (text.format(tmp_path).replace("FILE", name) for text in IMPOSSIBLE[way])
    with pytest.raises(ValueError, match="^`") as error:
        call(adata, path)
    assert str(error.value).startswith(f"`{argument}`: {message}")
    assert plt.get_fignums() == []


@pytest.mark.parametrize("argument", CALLS)
def test_a_folder_that_may_not_be_written_to(argument, adata, tmp_path, monkeypatch):
    name, call = CALLS[argument]
    allowed = os.access
    # the superuser may write anywhere
    monkeypatch.setattr(
        os, "access", lambda path, mode, **more: path != tmp_path and allowed(path, mode, **more), raising=True
    )
    with pytest.raises(ValueError, match=rf"`{argument}`: you may not write to the folder '.*'. Name another"):
        call(adata, tmp_path / name)
    assert plt.get_fignums() == []


@pytest.mark.parametrize("argument", CALLS)
def test_a_disk_that_is_full_before_or_becomes_so(argument, adata, tmp_path, monkeypatch):
    name, call = CALLS[argument]
    path = tmp_path / name
    call(adata, path)
    before, opened = path.read_bytes(), Path.open
    refused = "x"

    def refuse(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    def open_or_refuse(self, mode="r", **more):
        return refuse() if refused in mode else opened(self, mode, **more)

    monkeypatch.setattr(Path, "open", open_or_refuse)
    plt.close("all")
    with pytest.raises(ValueError, match=rf"`{argument}`: '.*{name}' cannot be written \(No space left on device\)"):
        call(adata, path)
    assert plt.get_fignums() == []
    refused = "w"
    monkeypatch.setattr(Figure, "savefig", refuse)
    with pytest.raises(OSError, match=rf"`{argument}`: '.*{name}' cannot be written: No space left .* is as it was"):
        call(adata, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("argument", CALLS)
def test_a_link_goes_on_leading_to_its_file(argument, adata, tmp_path):
    name, call = CALLS[argument]
    (tmp_path / "folder").mkdir()
    (tmp_path / name).symlink_to(f"folder/{name}")
    call(adata, tmp_path / name)
    assert (tmp_path / name).is_symlink()
    assert (tmp_path / "folder" / name).stat().st_size > 1000


def test_the_home_folder_may_be_written_as_a_tilde(adata, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    lfm.pl.factors(adata, show=False, save="~/figure.png")
    assert (tmp_path / "figure.png").exists()
