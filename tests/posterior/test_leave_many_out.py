"""The posterior without some counts: the formula by hand, and true refits that have not seen them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import scvi_lfm as lfm
from scvi_lfm.linalg.packed import unpack
from scvi_lfm.posterior import read_fit
from scvi_lfm.posterior.leave_many_out import eta_without, without
from scvi_lfm.posterior.leave_one_out import LeaveOneOut, fitted_of_pairs
from scvi_lfm.posterior.recomputed import Recomputed
from scvi_lfm.posterior.shares_left_out import SharesLeftOut


def entries(cells, genes, shares):
    taken = SharesLeftOut.none(torch.as_tensor(cells), torch.as_tensor(genes))
    return replace(taken, share=torch.as_tensor(shares, dtype=torch.float32))


@pytest.fixture(scope="module")
def clean():
    return lfm.datasets.simulate(300, 120, 2, likelihood="negative_binomial", mu=0.3, factor_scales=[0.6, 0.4])


@pytest.fixture(scope="module")
def odd(clean):
    """The same with 60 bursts, which are in 45 cells and 12 genes, and a fit."""
    rng = np.random.default_rng(0)
    adata = clean.copy()
    values = adata.X.toarray()
    at = rng.choice(45, 60), rng.choice(12, 60)
    values[at] += 40
    adata.X = values
    lfm.tl.fit(adata, 2, likelihood="negative_binomial", progress=False)
    cell, gene = np.nonzero(values != clean.X.toarray())
    return adata, torch.from_numpy(cell), torch.from_numpy(gene)


def fit(adata):
    return read_fit(adata, "lfm").posterior


def test_rows_are_those_of_the_formula(odd):
    adata, cell, gene = odd
    q, y = fit(adata), torch.from_numpy(adata.X)
    share = torch.linspace(0.2, 1, len(cell))
    new, _ = without(q, y[cell, gene], entries(cell, gene, share))
    rate = fitted_of_pairs(q, cell, gene).seen_by(q.likelihood).double()
    phi = q.noise.dispersion[gene]
    weight, score = share * rate / (1 + phi * rate), share * (y[cell, gene] - rate) / (1 + phi * rate)
    sides = (
        (q.cell_mean, q.cell_cov, new.cell_mean, cell, q.gene_mean, gene, 0.5),
        (q.gene_mean, q.gene_cov, new.gene_mean, gene, q.cell_mean, cell, 1.0),
    )
    for mean, cov, new_mean, rows, others, at, most in sides:
        x = others[at].clone()
        x[:, 0] = 1
        for row in rows.unique():
            mine = rows == row
            precision = torch.linalg.inv(unpack(cov.values[row].double())) - (weight[mine, None] * x[mine]).T @ x[mine]
            pull = -(score[mine, None] * x[mine]).sum(0)
            step = torch.linalg.inv(precision) @ pull
            change = (step @ pull / torch.linalg.inv(unpack(cov.values[row].double()))[0, 0]).sqrt()
            moved = mean[row] + step * (most / change).clamp(max=1)
            torch.testing.assert_close(new_mean[row], moved, rtol=1e-5, atol=1e-6)
        rest = torch.ones(len(mean), dtype=torch.bool)
        rest[rows] = False
        assert torch.equal(new_mean[rest], mean[rest])
    assert new.cell_cov is q.cell_cov
    assert new.gene_cov is q.gene_cov


def test_nothing_taken_changes_nothing(odd):
    adata, cell, gene = odd
    q, y = fit(adata), torch.from_numpy(adata.X)
    same, taken = without(q, y[cell, gene], entries(cell, gene, torch.zeros(len(cell))))
    assert torch.equal(same.cell_mean, q.cell_mean)
    assert torch.equal(same.gene_mean, q.gene_mean)
    assert (taken.seen == 1).all()


def test_pairs_are_those_of_blocks(odd):
    adata, cell, gene = odd
    q, y = fit(adata), torch.from_numpy(adata.X)
    taken = entries(cell, gene, torch.linspace(0, 1, len(cell)))
    new, taken = without(q, y[cell, gene], taken)
    pairs = eta_without(new, y[cell, gene], taken)
    for start, stop in ((0, 300), (10, 40)):
        cells = slice(start, stop)
        block, _ = LeaveOneOut(new).eta(y[cells], new.at_cells(cells), taken.rows(cells))
        inside = (cell >= start) & (cell < stop)
        at = cell[inside] - start, gene[inside]
        torch.testing.assert_close(pairs.mean[inside], block.mean[at], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(pairs.var[inside], block.var[at], rtol=1e-3, atol=1e-5)


def test_one_count_wholly_taken_is_left_one_out(odd):
    adata, *_ = odd
    q, y = fit(adata), torch.from_numpy(adata.X)
    left_out = LeaveOneOut(q).eta(y, q)[0]
    rate = LeaveOneOut(q).fitted(q).seen_by(q.likelihood)
    for i in (3, 100, 200):
        # counts are taken out where more was found than expected
        j = int(torch.nonzero(y[i, 20:] > rate[i, 20:])[0]) + 20
        new, one = without(q, y[i, j][None], entries([i], [j], [1.0]))
        eta = eta_without(new, y[i, j][None], one)
        # a product of two changes is left out there
        product = (new.cell_mean - q.cell_mean)[i, 1:] @ (new.gene_mean - q.gene_mean)[j, 1:]
        assert float(eta.mean) == pytest.approx(float(left_out.mean[i, j]), abs=abs(float(product)) + 1e-4)
        assert float(eta.var) == pytest.approx(float(left_out.var[i, j]), rel=0.1)


def test_goes_most_of_the_way_to_a_refit_that_has_not_seen_them(odd, clean):
    adata, cell, gene = odd
    q, y = fit(adata), torch.from_numpy(adata.X)
    ones = torch.ones(len(cell))
    new, _ = without(q, y[cell, gene], entries(cell, gene, ones))
    without_bursts = clean.copy()
    without_bursts.X = clean.X.toarray()
    lfm.tl.fit(without_bursts, 2, likelihood="negative_binomial", progress=False)

    def rates(posterior):
        return LeaveOneOut(posterior).fitted(posterior).seen_by(posterior.likelihood).log()

    target = rates(fit(without_bursts))
    # measured: 0.60 and 0.24 over the genes with bursts
    error = [(rates(posterior) - target)[:, gene.unique()].square().mean().sqrt() for posterior in (q, new)]
    assert error[1] < 0.55 * error[0]


def test_a_row_that_rests_on_one_count_stays_finite(clean):
    values = clean.X.toarray()
    values[:, 7] = 0
    values[11, 7] = 20_000
    adata = clean.copy()
    adata.X = values
    lfm.tl.fit(adata, 4, likelihood="poisson", size_factors="size_factor", progress=False)
    new, one = without(fit(adata), torch.tensor([20_000.0]), entries([11], [7], [1.0]))
    for part in (new.cell_mean, new.gene_mean):
        assert torch.isfinite(part).all()
    before, rate = (LeaveOneOut(part).fitted(part).seen_by(part.likelihood)[:, 7] for part in (fit(adata), new))
    assert rate.max() <= before.max()
    # it is left one out all the same; how far that goes alone is up to rounding, as it is all that its row knows
    assert one.seen > 0.9
    assert eta_without(new, torch.tensor([20_000.0]), one).mean.exp() < rate.max()


@pytest.mark.parametrize("seed", range(3))
def test_known_covariates_stay_known(seed):
    adata = lfm.datasets.simulate(120, 40, 1, likelihood="poisson", mu=0.5, rng=seed)
    adata.obs["batch"] = np.repeat(["a", "b"], 60)
    lfm.tl.fit(adata, 1, likelihood="poisson", covariates=["batch"], progress=False)
    q = fit(adata)
    cells, n = np.arange(0, 120, 3), 40
    new, _ = without(q, torch.full((n,), 30.0), entries(cells, np.arange(n) % 7, np.linspace(0.5, 1, n)))
    known = slice(1, 1 + q.n_known)
    assert q.n_known
    assert torch.equal(new.cell_mean[:, known], q.cell_mean[:, known])
    assert not torch.equal(new.gene_mean[5, known], q.gene_mean[5, known])


def test_covariances_made_when_asked_for_serve_too(odd):
    adata, cell, gene = odd
    q, y = fit(adata), torch.from_numpy(adata.X)
    prior = q.cell_prior.given_known(0)
    made = Recomputed.of(q.mu, q.cell_mean, q.gene_mean, q.gene_cov, q.noise, prior, "row_block")
    taken, counts = entries(cell, gene, torch.ones(len(cell))), y[cell, gene]
    (kept, _), (anew, _) = without(q, counts, taken), without(replace(q, cell_cov=made), counts, taken)
    torch.testing.assert_close(anew.gene_mean, kept.gene_mean, rtol=0.02, atol=0.01)
    torch.testing.assert_close(anew.cell_mean, kept.cell_mean, rtol=0.05, atol=0.02)
    assert anew.cell_cov is made


def test_some_cells():
    taken = entries([0, 0, 2, 5, 5, 9], [1, 2, 3, 4, 5, 6], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    some = taken.rows(slice(2, 9))
    assert some.cell.tolist() == [0, 3, 3]
    assert some.gene.tolist() == [3, 4, 5]
    assert taken.rows(slice(6, 9)).cell.tolist() == []
    assert taken.where(taken.share > 0.45).gene.tolist() == [5, 6]
