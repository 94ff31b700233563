"""The files of the MovieLens data sets: which there are, and their lines."""

from __future__ import annotations

import csv
import math
import re
from dataclasses import dataclass
from io import StringIO
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Iterator

COLUMNS = ("user", "movie", "rating", "timestamp")
HEADER = ("userId", "movieId", "rating", "timestamp")
LINES_PER_CHUNK = 2**20
GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
# first bytes of gzip, zip, bzip2 and xz
COMPRESSED = (b"\x1f\x8b", b"PK", b"BZh", b"\xfd7zXZ")
# of ratings, which are digits: some editors put a mark first
ENCODING = "utf-8-sig"
YEAR = re.compile(r"\((\d{4})(?:\s*[-\u2013]\s*\d{0,4})?\)\s*$")


@dataclass(frozen=True)
class Form:
    """One format: what its files are called, and what separates the fields of a rating."""

    ratings: str
    movies: str
    separator: str
    header: bool

    @property
    def movie_form(self) -> str:
        """End of the name of the file of movies, which tells how it is written."""
        return self.movies.rpartition(".")[2]


FORMS = (
    Form("u.data", "u.item", "\t", header=False),
    Form("ratings.dat", "movies.dat", "::", header=False),
    Form("ratings.csv", "movies.csv", ",", header=True),
)


@dataclass(frozen=True)
class Files:
    """What was found."""

    ratings: Path
    movies: Path | None
    form: Form


def find_files(path: object) -> Files:
    """The rating file at `path`, its format, and the file of movies beside it if there is one."""
    if not isinstance(path, str | PathLike):
        msg = f"`path` must be a path, found {path!r} of type {type(path).__name__}."
        raise TypeError(msg)
    place = Path(path)
    if not place.exists():
        msg = f"`path`: there is no {str(place)!r}."
        raise FileNotFoundError(msg)
    if place.is_dir():
        place = _rating_file(place)
    form = _form_of(place)
    movies = place.parent / form.movies
    return Files(place, movies if movies.is_file() else None, form)


def _rating_file(folder: Path) -> Path:
    names = [form.ratings for form in FORMS]
    found = [folder / name for name in names if (folder / name).is_file()]
    if not found:
        msg = f"`path`: {str(folder)!r} holds none of {', '.join(names)}. Name the folder of one MovieLens data set."
        raise FileNotFoundError(msg)
    if len(found) > 1:
        msg = f"`path`: {str(folder)!r} holds {' and '.join(file.name for file in found)}. Name the one to read."
        raise ValueError(msg)
    return found[0]


def _form_of(path: Path) -> Form:
    """The format, by the separators of the first line.

    pandas takes the number of fields from the first ratings, so these are looked at here.
    """
    with path.open("rb") as file:
        if file.read(6).startswith(COMPRESSED):
            msg = f"{path} is compressed. Unpack it, and name the folder or the rating file in it."
            raise ValueError(msg)
    lines = _lines(path)
    number, line = next(lines, (1, ""))
    if not line:
        msg = f"{path} is empty."
        raise ValueError(msg)
    form = next((form for form in FORMS if form.separator in line), None)
    if form is None:
        msg = f"{path}, line {number}: fields must be separated by tabs, '::' or commas, found {line!r}."
        raise ValueError(msg)
    if form.header:
        if tuple(_fields(line, form)) != HEADER:
            msg = f"{path}, line {number}: the header must be {','.join(HEADER)!r}, found {line!r}."
            raise ValueError(msg)
        number, line = next(lines, (0, ""))
        if not line:
            msg = f"{path} holds no ratings."
            raise ValueError(msg)
    if problem := _problem(line, form):
        raise _malformed(path, number, line, problem)
    return form


def _fields(line: str, form: Form) -> list[str]:
    return [field.strip().strip('"') for field in line.split(form.separator)]


def read_ratings(path: Path, form: Form) -> dict[str, np.ndarray]:
    """The columns of a rating file, one entry for each line: user, movie, rating, timestamp."""
    types = {"user": np.int64, "movie": np.int64, "rating": np.float32, "timestamp": np.float64}
    names = list(COLUMNS)
    if form.separator == "::":  # one colon is what the fast parser can split at; the columns between must be empty
        names = ["user", "_1", "movie", "_2", "rating", "_3", "timestamp"]
    parts = []
    try:
        with pd.read_csv(
            path,
            sep=form.separator[0],
            header=0 if form.header else None,
            names=names,
            dtype=types,
            encoding=ENCODING,
            encoding_errors="replace",
            chunksize=LINES_PER_CHUNK,
            on_bad_lines="error",
        ) as chunks:
            for chunk in chunks:
                values = chunk[["rating", "timestamp"]].to_numpy()
                between = chunk.drop(columns=list(COLUMNS))
                if not np.isfinite(values).all() or between.notna().to_numpy().any():
                    msg = "A field is missing or is not a number."
                    raise ValueError(msg)
                parts.append({name: chunk[name].to_numpy() for name in COLUMNS})
    except (ValueError, OverflowError):  # pandas' own errors are these
        _raise_for_first_malformed(path, form)
        raise
    return {name: np.concatenate([part[name] for part in parts]) for name in COLUMNS}


def _raise_for_first_malformed(path: Path, form: Form) -> None:
    """Name the first line that cannot be read; slow, and needed only where reading failed."""
    for number, line in _lines(path):
        problem = "" if form.header and number == 1 else _problem(line, form)
        if problem:
            raise _malformed(path, number, line, problem)


def _problem(line: str, form: Form) -> str:
    """What is wrong with a line of ratings; empty if nothing is."""
    fields = _fields(line, form)
    if len(fields) != len(COLUMNS):
        return f"{len(COLUMNS)} fields ({', '.join(COLUMNS)}) are needed, found {len(fields)}"
    for name, field in zip(COLUMNS, fields, strict=True):
        whole = name in {"user", "movie"}
        try:
            fine = abs(int(field)) < 2**63 if whole else math.isfinite(float(field))
        except ValueError:
            fine = False
        if not fine:
            return f"the {name} {field!r} is not a {'whole ' if whole else ''}number"
    return ""


def _malformed(path: Path, number: int, line: str, problem: str) -> ValueError:
    msg = f"{path}, line {number}: {problem}. The line is {line!r}."
    return ValueError(msg)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of the lines that are not blank."""
    with path.open(encoding=ENCODING, errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line.rstrip("\n")


def read_movies(path: Path, form: str) -> pd.DataFrame:
    """Title, year and genres of the movies, by number."""
    rows, seen = [], set()
    for number, line, fields in _movie_lines(path, form):
        if len(fields) < 3 or not fields[0].strip().isdecimal():
            raise _malformed(path, number, line, "a number, a title and genres are needed")
        if fields[0] in seen:
            raise _malformed(path, number, line, f"movie {fields[0]} has been described before")
        seen.add(fields[0])
        rows.append(_movie(fields, form))
    return pd.DataFrame(rows, columns=["movie", "title", "year", "genres"]).set_index("movie")


def _movie_lines(path: Path, form: str) -> Iterator[tuple[int, str, list[str]]]:
    """Number, text and fields of each line; a title may hold commas in quotes, and colons."""
    if form == "csv":
        reader = csv.reader(StringIO(_text(path)))
        next(reader, None)  # the header
        for fields in reader:
            if fields:
                yield reader.line_num, ",".join(fields), fields
        return
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        if form == "dat":
            head, _, rest = line.partition("::")
            yield number, line, [head, *rest.rsplit("::", 1)]
        else:
            fields = line.split("|")
            yield number, line, fields if len(fields) == 5 + len(GENRES_100K) else []


def _movie(fields: list[str], form: str) -> tuple[int, str, float, str]:
    title, genres, found = fields[1], fields[-1], YEAR.search(fields[1])
    year = float(found[1]) if found else math.nan
    if form == "item":
        genres = "|".join(genre for genre, flag in zip(GENRES_100K, fields[5:], strict=True) if flag.strip() == "1")
        released = fields[2].rpartition("-")[2]
        year = float(released) if math.isnan(year) and released.isdecimal() else year
    return int(fields[0]), title, year, genres


def _text(path: Path) -> str:
    """UTF-8 in the newer data sets, Latin-1 in the older."""
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")
