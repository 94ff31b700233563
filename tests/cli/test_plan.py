"""`scvi-lfm fit --plan`: a table, and nothing else."""

from __future__ import annotations

import scvi_lfm as lfm
from scvi_lfm._cli import main


def test_the_plan_is_printed_and_nothing_written(tmp_path, capsys):
    lfm.datasets.simulate(60, 30, 2).write_h5ad(tmp_path / "counts.h5ad")
    assert main(["fit", str(tmp_path / "counts.h5ad"), "--plan", "--n-factors", "2"]) == 0
    out = capsys.readouterr().out
    assert "60 cells x 30 genes" in out
    assert "\ntime " in out
    assert [path.name for path in tmp_path.iterdir()] == ["counts.h5ad"]
