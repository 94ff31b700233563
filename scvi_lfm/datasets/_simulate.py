from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd

from .._validate import check_count


def simulate(
    n_cells: int = 500,
    n_genes: int = 300,
    n_factors: int = 5,
    *,
    mu: float = 0.5,
    cell_scale: float = 0.3,
    gene_scale: float = 1.0,
    factor_scales: np.ndarray | list[float] | None = None,
    sigma: float | np.ndarray = 1.0,
    rng: int | np.random.Generator = 0,
) -> ad.AnnData:
    r"""Draw a data set from the model itself, and keep the truth beside it.

    .. math::

        \eta_{ij} &= \mu + a_i + b_j + A_i \cdot B_j \\
        a_i &\sim \mathcal N(0, \kappa_a^2) \qquad A_{ik} \sim \mathcal N(0, 1) \\
        b_j &\sim \mathcal N(0, \kappa_b^2) \qquad B_{jk} \sim \mathcal N(0, \kappa_{Bk}^2) \\
        y_{ij} &\sim \mathcal N(\eta_{ij}, \sigma_j^2)

    Parameters
    ----------
    n_cells
        Number of cells (rows).
    n_genes
        Number of genes (columns).
    n_factors
        Number of factors :math:`r`.
    mu
        The overall level :math:`\mu`.
    cell_scale
        Standard deviation :math:`\kappa_a` of cell activity; 0 switches it off.
    gene_scale
        Standard deviation :math:`\kappa_b` of gene abundance; 0 switches it off.
    factor_scales
        Standard deviations :math:`\kappa_{Bk}` of the gene embedding, one for each factor; 0 makes a factor that is not
        there. By default :math:`1 / \sqrt k` for :math:`k = 1, \dots, r`: decreasing.
    sigma
        Standard deviation of the noise: one number, or one for each gene.
    rng
        Seed or generator. The same seed gives the same bits; a generator is advanced.

    Returns
    -------
    A new AnnData with cells `cell_0`, ... and genes `gene_0`, ...:

    `.X` : :class:`numpy.ndarray` (dtype `float32`, shape (n_cells, n_genes))
        The values :math:`y`.
    `.uns['mu']` : :class:`float`
        True :math:`\mu`.
    `.obs['a']` : :class:`pandas.Series` (dtype `float64`, shape (n_cells,))
        True cell activity, as drawn: its mean over the cells is near zero, not zero.
    `.obsm['A']` : :class:`numpy.ndarray` (dtype `float64`, shape (n_cells, n_factors))
        True cell embedding.
    `.var['b']` : :class:`pandas.Series` (dtype `float64`, shape (n_genes,))
        True gene abundance, as drawn.
    `.var['sigma']` : :class:`pandas.Series` (dtype `float64`, shape (n_genes,))
        True standard deviation of the noise of each gene.
    `.varm['B']` : :class:`numpy.ndarray` (dtype `float64`, shape (n_genes, n_factors))
        True gene embedding.

    Only :math:`\eta`, and with it the centred :math:`A B^\top`, can be learned from `.X`: rotations of the embeddings
    and shifts between :math:`\mu`, :math:`a` and :math:`b` leave it unchanged.

    Raises
    ------
    TypeError
        If an argument is not a number (or `rng` neither an int nor a generator).
    ValueError
        If a number is out of its range or an array of the wrong length.

    Examples
    --------
    >>> import scvi_lfm as lfm
    >>> adata = lfm.datasets.simulate(200, 100, 3, sigma=0.5)
    >>> adata.shape, adata.varm["B"].shape
    ((200, 100), (100, 3))
    """
    n = check_count("n_cells", n_cells)
    m = check_count("n_genes", n_genes)
    r = check_count("n_factors", n_factors)
    level = _numbers("mu", mu, ())
    kappa_a = _scales("cell_scale", cell_scale, ())
    kappa_b = _scales("gene_scale", gene_scale, ())
    kappa_B = (
        1 / np.sqrt(np.arange(1, r + 1)) if factor_scales is None else _scales("factor_scales", factor_scales, (r,))
    )
    noise_scale = np.broadcast_to(_noise_scales(sigma, m), m)
    generator = _generator(rng)

    a = kappa_a * generator.standard_normal(n)
    A = generator.standard_normal((n, r))
    b = kappa_b * generator.standard_normal(m)
    B = kappa_B * generator.standard_normal((m, r))
    eta = level + a[:, None] + b + A @ B.T
    y = eta + noise_scale * generator.standard_normal((n, m))
    return ad.AnnData(
        y.astype(np.float32),
        obs=pd.DataFrame({"a": a}, index=[f"cell_{i}" for i in range(n)]),
        var=pd.DataFrame({"b": b, "sigma": noise_scale}, index=[f"gene_{j}" for j in range(m)]),
        obsm={"A": A},
        varm={"B": B},
        uns={"mu": float(level)},
    )


def _numbers(name: str, value: object, shape: tuple[int, ...]) -> np.ndarray:
    """`value` as finite float64 of `shape`."""
    array = np.asarray(value)
    if array.dtype.kind not in "iuf":
        wanted = "numbers" if shape else "a number"
        msg = f"`{name}` must be {wanted}, found {value!r} of type {type(value).__name__}."
        raise TypeError(msg)
    if array.shape != shape:
        wanted = f"hold {shape[0]} numbers" if shape else "be one number"
        msg = f"`{name}` must {wanted}, found an array of shape {array.shape}."
        raise ValueError(msg)
    if not np.isfinite(array).all():
        msg = f"`{name}` must be finite, found {value!r}."
        raise ValueError(msg)
    return array.astype(np.float64)


def _scales(name: str, value: object, shape: tuple[int, ...]) -> np.ndarray:
    """`value` as standard deviations of `shape`, zero allowed."""
    scales = _numbers(name, value, shape)
    if (scales < 0).any():
        msg = f"`{name}` must not be negative, found {scales.min():g}; pass standard deviations, 0 for none."
        raise ValueError(msg)
    return scales


def _noise_scales(sigma: object, n_genes: int) -> np.ndarray:
    """`sigma` as standard deviations above zero: one, or one for each gene."""
    scales = _scales("sigma", sigma, () if np.ndim(sigma) == 0 else (n_genes,))  # type: ignore[arg-type]
    if (scales == 0).any():
        msg = (
            "`sigma` must be above 0, found 0; for data that are almost free of noise pass a small number such as 1e-3."
        )
        raise ValueError(msg)
    return scales


def _generator(rng: object) -> np.random.Generator:
    """`rng` as a generator, without the torch that the rest of the package needs for its seeds."""
    if isinstance(rng, np.random.Generator):
        return rng
    if isinstance(rng, bool) or not isinstance(rng, int | np.integer):
        msg = f"`rng` must be an int or a numpy.random.Generator, found {rng!r} of type {type(rng).__name__}."
        raise TypeError(msg)
    if rng < 0:
        msg = f"`rng` must not be negative, found {rng}."
        raise ValueError(msg)
    return np.random.default_rng(int(rng))
