"""Whether covariances of genes need to be stored: what finding them anew takes, and how few numbers would hold them.

    python tests/benchmarks/gene_covariances.py [--factors 30] [--rounds 8] [--seed 0]

The shipped cells are fitted as counts. The precision of gene j is that of its prior plus a sum over all cells of
w_ij E[(1, A_i)(1, A_i)'], and the weight w_ij depends on the covariance in turn. Printed are the size of
`varm["lfm_cov"]`; for rounds from covariances of zero, the largest difference in a gene's covariance from the round
after the last, by the sds, in the middle of genes and at most, and processor seconds; the same for one round from what
is stored; and for low ranks of all precisions, by their traces, and of all covariances, by their sds, the relative
error of the worst gene.
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import TYPE_CHECKING

import torch

import scvi_lfm as lfm
from scvi_lfm.linalg.packed import diagonal, doubled, off_first, outer, pack, unpack
from scvi_lfm.model.likelihoods import LIKELIHOODS
from scvi_lfm.posterior.rates import GeneFeatures
from scvi_lfm.posterior.store import read_fit

if TYPE_CHECKING:
    from scvi_lfm.posterior.posterior import Posterior

BLOCK = 512  # cells, and genes
RANKS = (100, 200, 300, 400, 450)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--factors", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    adata = lfm.datasets.pbmc_sorted()
    begun = time.process_time()
    lfm.tl.fit(adata, args.factors, rng=args.seed, progress=False)
    print(f"fit: {time.process_time() - begun:.1f} processor s")
    print(f"varm['lfm_cov']: {adata.varm['lfm_cov'].nbytes / 1e6:.1f} MB, {adata.varm['lfm_cov'].shape}")
    q = read_fit(adata, "lfm").posterior
    stored = q.gene_cov.packed().double()
    covs, seconds = [torch.zeros_like(stored)], []
    for _ in range(args.rounds + 1):
        begun = time.process_time()
        covs.append(covariances(q, covs[-1])[1])
        seconds.append(time.process_time() - begun)
    *found, last = covs[1:]
    for number, cov in enumerate(found):
        print(f"round {number + 1} from zero: {told(cov, last)}, {sum(seconds[: number + 1]):.1f} s in all")
    precision, again = covariances(q, stored)
    print(f"stored: {told(stored, last)}; one round from it moves it by {told(again, stored)}")
    k = args.factors + 1
    twice = doubled(k, stored).sqrt()  # what stands off the diagonal counts twice
    low_ranks("precisions", precision / diagonal(precision).sum(1, keepdim=True) * twice)
    low_ranks("covariances", last / by_sds(last) * twice)


def covariances(q: Posterior, cov: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What data add to the precisions of genes, with covariances `cov` in the weights, and the covariances of that."""
    likelihood, mean, of_cells = LIKELIHOODS[q.noise.likelihood], q.cell_mean.float(), q.cell_cov.packed().float()
    features = GeneFeatures.of(q.gene_mean.float(), cov.float())
    left = features.of_cells(mean, of_cells, (q.noise.log_size + q.mu).float())
    first_is_one = torch.cat([torch.ones_like(mean[:, :1]), mean[:, 1:]], dim=1)
    moments = outer(first_is_one) + of_cells * off_first(mean.shape[1], of_cells)
    information = torch.zeros(len(cov), moments.shape[1], dtype=torch.float64)
    for genes in features.blocks(BLOCK):
        for cells in torch.arange(len(mean)).split(BLOCK):
            rate = features.rates(left[cells], genes)
            weight, _ = likelihood.weight_and_score(rate, rate, q.noise.dispersion[genes].float())
            information[genes] += weight.T @ moments[cells]
    prior = torch.linalg.inv(q.gene_prior.cov)
    parts = [pack(torch.linalg.inv(unpack(part) + prior)) for part in information.split(BLOCK)]
    return information, torch.cat(parts)


def by_sds(cov: torch.Tensor) -> torch.Tensor:
    """Products of the standard deviations of each two coordinates, packed."""
    return outer(diagonal(cov).sqrt())


def told(cov: torch.Tensor, other: torch.Tensor) -> str:
    """How far covariances are from others, in words."""
    far = ((cov - other).abs() / by_sds(other)).amax(1)
    return f"{float(far.median()):.1e} in the middle, {float(far.max()):.1e} at most"


def low_ranks(name: str, rows: torch.Tensor) -> None:
    """Print the worst row's relative error for each rank."""
    vectors = torch.linalg.eigh(rows.T @ rows).eigenvectors.flip(1)
    for rank in RANKS:
        if rank < rows.shape[1]:
            rest = rows - (rows @ vectors[:, :rank]) @ vectors[:, :rank].T
            worst = float((rest.norm(dim=1) / rows.norm(dim=1)).max())
            print(f"rank {rank} of {rows.shape[1]}, {name}: {worst:.1e}")


if __name__ == "__main__":
    main()
