from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from .._calls import named_arguments
from ._movielens_files import find_files, read_movies, read_ratings

if TYPE_CHECKING:
    from pathlib import Path


@named_arguments
def movielens(path: str | Path) -> ad.AnnData:
    r"""Read a MovieLens rating file that you have, in any of its published formats.

    Nothing is downloaded, and no ratings ship with the package: fetch a data set from GroupLens, under its licence, and
    name its folder.

    ===============  ==============================  ================================
    data set         ratings                         movies
    ===============  ==============================  ================================
    100K             `u.data`, separated by tabs     `u.item`, by `|`, 19 genre flags
    1M, 10M          `ratings.dat`, by `::`          `movies.dat`, by `::`
    20M, 25M, 32M    `ratings.csv`, with a header    `movies.csv`, with a header
    ===============  ==============================  ================================

    Parameters
    ----------
    path
        The folder, or one rating file of any name (such as `u1.base`) in one of these formats. Movies are described if
        the file with their titles lies in the same folder.

    Returns
    -------
    A new AnnData of users x movies, in increasing order of their numbers:

    `.X` : :class:`scipy.sparse.csr_matrix` (dtype `float32`, shape (users, movies))
        Ratings, in stars. Only ratings are stored, and a rating of zero is stored too: fit it with
        `observed="stored"`.
    `.layers['timestamp']` : :class:`scipy.sparse.csr_matrix` (dtype `float64`, shape (users, movies))
        When each rating was given, in seconds since 1970.
    `.obs_names`, `.var_names`
        Numbers of users and movies, as strings. Movies that nobody rated are left out.
    `.var['title']` : :class:`pandas.Series` (strings, shape (movies,))
        Title; empty for a movie that the file of titles does not have. Absent without such a file, as the next two.
    `.var['year']` : :class:`pandas.Series` (dtype `float64`, shape (movies,))
        Year in parentheses at the end of the title, or else of the release date; NaN if there is neither.
    `.var['genres']` : :class:`pandas.Series` (strings, shape (movies,))
        Genres, separated by `|`.

    Raises
    ------
    FileNotFoundError
        There is no such path, or no rating file in the folder.
    TypeError
        `path` is not a path.
    ValueError
        A line cannot be read (the file, the line's number and the line are named), a user rated a movie twice, or the
        format is unknown.

    Notes
    -----
    Harper and Konstan (2015), The MovieLens datasets: history and context, ACM Transactions on Interactive Intelligent
    Systems 5:19, `doi:10.1145/2827872 <https://doi.org/10.1145/2827872>`__.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import scvi_lfm as lfm
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "u.data").write_text("196\t242\t3\t881250949\n186\t302\t4\t891717742\n")
    ...     adata = lfm.datasets.movielens(folder)
    >>> adata.shape, list(adata.obs_names)
    ((2, 2), ['186', '196'])
    """
    files = find_files(path)
    ratings = read_ratings(files.ratings, files.form)
    row, users = pd.factorize(ratings["user"], sort=True)
    column, movies = pd.factorize(ratings["movie"], sort=True)
    shape = (len(users), len(movies))
    values = sp.csr_matrix((ratings["rating"], (row, column)), shape=shape, dtype=np.float32)
    if values.nnz < len(row):  # the sums of repeated pairs
        _refuse_repeated(ratings, row.astype(np.int64) * len(movies) + column, files.ratings)
    return ad.AnnData(
        values,
        obs=pd.DataFrame(index=users.astype(str)),
        var=_described(movies, files.movies, files.form.movie_form),
        layers={"timestamp": sp.csr_matrix((ratings["timestamp"], (row, column)), shape=shape)},
    )


def _refuse_repeated(ratings: dict[str, np.ndarray], pair: np.ndarray, path: Path) -> None:
    repeated = pd.Series(pair).duplicated().to_numpy()
    again = int(np.flatnonzero(repeated)[0])
    before = int(np.flatnonzero(pair == pair[again])[0])
    msg = (
        f"{path}: {int(repeated.sum())} rating(s) repeat a pair of user and movie, first user {ratings['user'][again]} "
        f"with movie {ratings['movie'][again]}, rated {ratings['rating'][before]:g} and then "
        f"{ratings['rating'][again]:g}. Keep one rating of each pair."
    )
    raise ValueError(msg)


def _described(movies: np.ndarray, path: Path | None, form: str) -> pd.DataFrame:
    if path is None:
        return pd.DataFrame(index=movies.astype(str))
    table = read_movies(path, form).reindex(movies)
    missing = {"title": "", "genres": ""}
    return table.fillna(missing).set_axis(movies.astype(str), axis=0)
