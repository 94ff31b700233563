from __future__ import annotations

import importlib

import numpy as np
import pandas as pd
import pytest

import scvi_lfm as lfm
from scvi_lfm.datasets import _movielens_files as files

RATINGS = [
    (20, 3, 4.0, 978300760),
    (1, 10, 2.0, 978302109),
    (3, 3, 5.0, 978301968),
    (1, 3, 1.0, 978300275),
]
FLAGS_TOY_STORY = "0|0|0|1|1|1|0|0|0|0|0|0|0|0|0|0|0|0|0"
FLAGS_UNKNOWN = "1|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0"


@pytest.fixture
def write_100k(tmp_path):
    lines = ["\t".join(map(str, (u, m, int(r), t))) for u, m, r, t in RATINGS]
    (tmp_path / "u.data").write_text("\n".join(lines) + "\n")
    items = f"3|Caf\xe9 (1995)|01-Jan-1996||http://x|{FLAGS_TOY_STORY}\n10|unknown|17-Feb-1997|||{FLAGS_UNKNOWN}\n"
    (tmp_path / "u.item").write_bytes(items.encode("latin-1"))
    return tmp_path


@pytest.fixture
def write_dat(tmp_path):
    (tmp_path / "ratings.dat").write_text("".join(f"{u}::{m}::{r:g}::{t}\n" for u, m, r, t in RATINGS))
    movies = "3::Caf\xe9 (1995)::Animation|Comedy\n10::Star Trek:: The Return, (1986)::Sci-Fi\n99::Unseen (1)::Drama\n"
    (tmp_path / "movies.dat").write_bytes(movies.encode("latin-1"))
    return tmp_path


@pytest.fixture
def write_csv(tmp_path):
    rows = "".join(f"{u},{m},{r},{t}\n" for u, m, r, t in RATINGS)
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + rows)
    movies = 'movieId,title,genres\n3,"Caf\xe9, The (1995\u20131997)",Comedy|Drama\n10,Babylon,(no genres listed)\n'
    (tmp_path / "movies.csv").write_text(movies, encoding="utf-8")
    return tmp_path


def check_values(adata):
    assert list(adata.obs_names) == ["1", "3", "20"]  # by number, not by text
    assert list(adata.var_names) == ["3", "10"]
    assert adata.X.dtype == np.float32
    np.testing.assert_array_equal(adata.X.toarray(), [[1, 2], [5, 0], [4, 0]])
    np.testing.assert_array_equal(adata.layers["timestamp"].toarray()[0], [978300275, 978302109])
    assert adata.X.nnz == adata.layers["timestamp"].nnz == 4


def test_100k(write_100k):
    adata = lfm.datasets.movielens(write_100k)
    check_values(adata)
    assert list(adata.var["title"]) == ["Caf\xe9 (1995)", "unknown"]
    assert list(adata.var["year"]) == [1995, 1997]  # of the title, else of the release
    assert list(adata.var["genres"]) == ["Animation|Children's|Comedy", "unknown"]


def test_1m_and_10m(write_dat):
    adata = lfm.datasets.movielens(str(write_dat))
    check_values(adata)
    assert list(adata.var["title"]) == ["Caf\xe9 (1995)", "Star Trek:: The Return, (1986)"]
    assert list(adata.var["year"]) == [1995, 1986]
    assert list(adata.var["genres"]) == ["Animation|Comedy", "Sci-Fi"]


def test_20m_and_32m(write_csv):
    adata = lfm.datasets.movielens(write_csv)
    check_values(adata)
    assert list(adata.var["title"]) == ["Caf\xe9, The (1995\u20131997)", "Babylon"]
    np.testing.assert_array_equal(adata.var["year"], [1995, np.nan])
    assert list(adata.var["genres"]) == ["Comedy|Drama", "(no genres listed)"]


def test_titles_in_utf8(write_dat):
    (write_dat / "movies.dat").write_text("3::Caf\xe9 (1995)::Comedy\n", encoding="utf-8")
    adata = lfm.datasets.movielens(write_dat)
    assert list(adata.var["title"]) == ["Caf\xe9 (1995)", ""]
    assert list(adata.var["genres"]) == ["Comedy", ""]


def test_one_file_of_another_name_without_titles(write_100k):
    (write_100k / "u.item").unlink()
    adata = lfm.datasets.movielens((write_100k / "u.data").rename(write_100k / "u1.base"))
    check_values(adata)
    assert list(adata.var.columns) == []


def test_half_stars_zeros_and_blank_lines(tmp_path):
    (tmp_path / "ratings.dat").write_text("7::2::0::5\n\n7::5::3.5::6\n")
    values = lfm.datasets.movielens(tmp_path).X
    np.testing.assert_array_equal(values.data, [0, 3.5])


def test_many_chunks_are_one_file(write_csv, monkeypatch):
    monkeypatch.setattr(files, "LINES_PER_CHUNK", 3)
    check_values(lfm.datasets.movielens(write_csv))


def test_it_survives_a_file(write_100k, tmp_path):
    import anndata as ad

    adata = lfm.datasets.movielens(write_100k)
    adata.write_h5ad(tmp_path / "ratings.h5ad")
    pd.testing.assert_frame_equal(ad.read_h5ad(tmp_path / "ratings.h5ad").var, adata.var, check_dtype=False)


GOOD = {
    "u.data": "1\t2\t3\t4\n",
    "ratings.dat": "1::2::3::4\n",
    "ratings.csv": "userId,movieId,rating,timestamp\n1,2,3,4\n",
}


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (("5", "6", "7"), "4 fields .* are needed, found 3"),
        (("5", "6", "7", "8", "9"), "4 fields .* are needed, found 5"),
        (("5", "6", "good", "8"), "the rating 'good' is not a number"),
        (("5", "6", "nan", "8"), "the rating 'nan' is not a number"),
        (("5", "6", "", "8"), "the rating '' is not a number"),
        (("u5", "6", "7", "8"), "the user 'u5' is not a whole number"),
        (("9" * 20, "6", "7", "8"), "the user '9+' is not a whole number"),
        (("5", "6.5", "7", "8"), "the movie '6.5' is not a whole number"),
        (("5", "6", "7", "noon"), "the timestamp 'noon' is not a number"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_malformed_lines_are_named(tmp_path, name, fields, problem, first):
    separator = {"u.data": "\t", "ratings.dat": "::", "ratings.csv": ","}[name]
    bad = separator.join(fields) + "\n"
    header = GOOD[name].rpartition("userId")[1] != ""
    lines = GOOD[name].splitlines(keepends=True)
    lines.insert(int(header) if first else len(lines), bad)
    (tmp_path / name).write_text("".join(lines))
    number = lines.index(bad) + 1
    with pytest.raises(ValueError, match=rf"{name}, line {number}: {problem}\. The line is "):
        lfm.datasets.movielens(tmp_path)


def test_three_colons_are_no_separator(tmp_path):
    (tmp_path / "ratings.dat").write_text("1::2::3::4\n1:x:3::3::4\n")
    with pytest.raises(ValueError, match="ratings.dat, line 2: 4 fields .* found 3"):
        lfm.datasets.movielens(tmp_path)


def test_repeated_pairs_are_named(tmp_path):
    (tmp_path / "u.data").write_text("1\t2\t3\t4\n5\t6\t1\t4\n5\t2\t1\t4\n5\t6\t2\t4\n1\t2\t3\t9\n")
    with pytest.raises(ValueError, match="2 rating.* user 5 with movie 6, rated 1 and then 2"):
        lfm.datasets.movielens(tmp_path)


def test_unknown_separators(tmp_path):
    (tmp_path / "u.data").write_text("1;2;3;4\n")
    with pytest.raises(ValueError, match="line 1: fields must be separated by tabs, '::' or commas, found '1;2;3;4'"):
        lfm.datasets.movielens(tmp_path)


def test_unknown_headers(tmp_path):
    (tmp_path / "ratings.csv").write_text("user,item,rating\n1,2,3\n")
    with pytest.raises(
        ValueError, match="the header must be 'userId,movieId,rating,timestamp', found 'user,item,rating'"
    ):
        lfm.datasets.movielens(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"), [("", "is empty"), ("userId,movieId,rating,timestamp\n", "holds no ratings")]
)
def test_files_without_ratings(tmp_path, text, words):
    (tmp_path / "ratings.csv").write_text(text)
    with pytest.raises(ValueError, match=words):
        lfm.datasets.movielens(tmp_path)


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="none of u.data, ratings.dat, ratings.csv"):
        lfm.datasets.movielens(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no .*nowhere"):
        lfm.datasets.movielens(tmp_path / "nowhere")
    with pytest.raises(TypeError, match="`path` must be a path, found 3"):
        lfm.datasets.movielens(3)


@pytest.mark.parametrize("library", ["gzip", "bz2", "lzma"])
def test_compressed_files(tmp_path, library):
    with importlib.import_module(library).open(tmp_path / "ratings.csv", "wt") as file:
        file.write("userId,movieId,rating,timestamp\n1,2,3,4\n")
    with pytest.raises(ValueError, match="ratings.csv is compressed. Unpack it"):
        lfm.datasets.movielens(tmp_path)


@pytest.mark.parametrize("name", GOOD)
def test_a_mark_of_utf8_is_no_value(tmp_path, name):
    (tmp_path / name).write_text(GOOD[name], encoding="utf-8-sig")
    adata = lfm.datasets.movielens(tmp_path)
    assert (adata.obs_names.tolist(), adata.var_names.tolist(), adata.X.data.tolist()) == (["1"], ["2"], [3])


def test_two_data_sets_in_one_folder(write_100k, write_dat):
    with pytest.raises(ValueError, match=r"holds u.data and ratings.dat. Name the one to read"):
        lfm.datasets.movielens(write_100k)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("3|Title|01-Jan-1995||\n", "line 1: a number, a title and genres are needed"),
        (f"x|Title|01-Jan-1995|||{FLAGS_UNKNOWN}\n", "line 1: a number"),
        (f"3|A||||{FLAGS_UNKNOWN}\n3|B||||{FLAGS_UNKNOWN}\n", "line 2: movie 3 has been described before"),
    ],
)
def test_malformed_movies(write_100k, text, words):
    (write_100k / "u.item").write_text(text)
    with pytest.raises(ValueError, match=f"u.item, {words}"):
        lfm.datasets.movielens(write_100k)


def test_malformed_movies_with_a_header(write_csv):
    with (write_csv / "movies.csv").open("a") as file:
        file.write("11,No genres\n")
    with pytest.raises(ValueError, match="movies.csv, line 4: a number, a title and genres are needed"):
        lfm.datasets.movielens(write_csv)
