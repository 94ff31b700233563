"""What a name that is not there may have meant."""

from __future__ import annotations

import pytest

from scvi_lfm import _spelling
from scvi_lfm._spelling import near_matches, nearest

GENES = [
    "A1BG", "CD33", "CD34", "CD3EAP", "CD3G", "CD3D", "CD3E", "CD4", "CD8A", "HLA-DRA", "LYN", "LYZ", "LY9", "MS4A1",
    "MT-CO1", "NKG7", "ZYX", "ZZZ3",
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("CD3", ["CD3D", "CD3E", "CD3G"]),  # before CD33, which is another number
        ("cd3e", ["CD3E"]),
        ("Ms4a1", ["MS4A1"]),
        (" CD4 ", ["CD4"]),
        ("MS4A", ["MS4A1"]),
        ("mt-", ["MT-CO1"]),
        ("LZY", ["LYZ", "LYN", "LY9"]),  # the same letters first
        ("HLA.DRA", ["HLA-DRA"]),
        ("unheard", []),
        ("", []),
        (" ", []),
        (7, []),
    ],
)
def test_nearest(name, meant):
    assert nearest(str(name), GENES) == meant


def test_of_equals_the_first_come_first():
    assert nearest("gene_x", [f"gene_{k}" for k in range(10)]) == ["gene_0", "gene_1", "gene_2"]


def test_one_case_is_not_another_name():
    assert nearest("abc", ["ABC", "Abc", "abcd"]) == ["ABC", "Abc"]


def test_of_very_many_names_only_beginnings_are_compared(monkeypatch):
    monkeypatch.setattr(_spelling, "MOST_SPELLINGS", 3)
    assert nearest("CD3X", GENES) == []
    assert nearest("cd3", GENES) == ["CD3D", "CD3E", "CD3G"]


def test_where_none_is_near_the_first_are_named():
    assert near_matches("q", []) == "There are none."
    assert near_matches("q", ["a", 1]) == "There are: 'a', '1'."
    assert near_matches("q", range(1_020)).endswith("'8', '9' and 1,010 more.")
