"""How a plan says what it expects."""

from __future__ import annotations

import pytest

from scvi_lfm.tl._plan_record import _words_of_seconds


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.034, "0.034 s"),
        (3.46, "3.5 s"),
        (42.4, "42 s"),
        (118.0, "118 s"),
        (121.0, "2 min"),
        (5990.0, "100 min"),
        (7000.0, "117 min"),
        (86400.0, "24 h"),
        (400000.0, "111 h"),
    ],
)
def test_times_are_written_as_people_write_them(seconds, words):
    assert _words_of_seconds(seconds) == words
