"""Do neighbours in the embedding share their sorted cell type? `tl.fit` against `sc.pp.pca`.

    python tests/benchmarks/embedding.py [COUNTS.h5ad] [--groupby facs_celltype] [--factors 30] [--seeds 5]
    python tests/benchmarks/embedding.py COUNTS.h5ad --likelihood negative_binomial --factors 20 [--scvi-epochs 10]

All genes are used. The figure is the 5-fold accuracy of a 15-nearest-neighbour classifier. PCA and the Normal
likelihood see log-normalised values, the other likelihoods the counts. Without COUNTS the data set that ships with the
package is used. `--scvi-epochs` adds LinearSCVI (needs scvi-tools) for that many epochs: too few to compare embeddings
by, but its seconds, scaled to the epochs of its default, tell the price of a full run.
"""

import argparse
import time

import anndata as ad
import numpy as np
import scanpy as sc
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier

import scvi_lfm as lfm


def accuracy(embedding: np.ndarray, labels: np.ndarray) -> float:
    """Mean over three shuffles of 5-fold accuracy."""
    scores = [
        cross_val_score(
            KNeighborsClassifier(15), embedding, labels, cv=StratifiedKFold(5, shuffle=True, random_state=s)
        )
        for s in range(3)
    ]
    return float(np.mean(scores))


def linear_scvi(adata: ad.AnnData, labels: np.ndarray, n_factors: int, n_epochs: int) -> None:
    """Train LinearSCVI on the counts for a few epochs, and say what its default number would take."""
    import scvi
    from scvi.model._utils import get_max_epochs_heuristic

    scvi.settings.seed = 0
    scvi.model.LinearSCVI.setup_anndata(adata, layer="counts")
    model = scvi.model.LinearSCVI(adata, n_latent=n_factors)
    start = time.perf_counter()
    model.train(max_epochs=n_epochs, enable_progress_bar=False)
    seconds = time.perf_counter() - start
    default = get_max_epochs_heuristic(adata.n_obs)
    score = accuracy(model.get_latent_representation(), labels)
    scaled = f"scaled to its default of {default}: {seconds * default / n_epochs:.0f} s"
    print(f"LinearSCVI    {score:.4f}   {seconds:.2f} s   {n_epochs} epochs; {scaled}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?")
    parser.add_argument("--groupby", default="facs_celltype")
    parser.add_argument("--likelihood", default="normal", choices=["normal", "poisson", "negative_binomial"])
    parser.add_argument("--noise", default="shared", choices=["shared", "gene", "cell_gene"], help="of a Normal")
    parser.add_argument("--factors", type=int, default=30)
    parser.add_argument("--components", type=int, default=30, help="of the PCA")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--scvi-epochs", type=int, default=0, help="0 leaves LinearSCVI out")
    args = parser.parse_args()
    adata = ad.read_h5ad(args.data) if args.data else lfm.datasets.pbmc_sorted()
    labels = adata.obs[args.groupby].astype(str).to_numpy()
    adata.layers["counts"] = adata.X.copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    layer = None if args.likelihood == "normal" else "counts"
    what = f"{args.likelihood}, noise {args.noise}, {args.factors} factors"
    print(f"{adata.n_obs} x {adata.n_vars}, {len(set(labels))} types, {what}")
    sc.pp.pca(adata, n_comps=args.components)  # once unmeasured: the first call compiles
    start = time.perf_counter()
    sc.pp.pca(adata, n_comps=args.components)
    seconds = time.perf_counter() - start
    print(f"sc.pp.pca     {accuracy(adata.obsm['X_pca'], labels):.4f}   {seconds:.2f} s   {args.components} components")
    scores = []
    for seed in range(args.seeds):
        start = time.perf_counter()
        options = {"likelihood": args.likelihood, "noise": args.noise, "layer": layer}
        lfm.tl.fit(adata, n_factors=args.factors, rng=seed, progress=False, **options)
        seconds = time.perf_counter() - start
        scores.append(accuracy(adata.obsm["X_lfm"], labels))
        print(f"lfm.tl.fit    {scores[-1]:.4f}   {seconds:.2f} s   seed {seed}", flush=True)
    spread = f"lowest {min(scores):.4f}, highest {max(scores):.4f}"
    print(f"lfm.tl.fit    {np.mean(scores):.4f}   mean over {args.seeds} seeds, {spread}")
    if args.scvi_epochs:
        linear_scvi(adata, labels, args.factors, args.scvi_epochs)


if __name__ == "__main__":
    main()
