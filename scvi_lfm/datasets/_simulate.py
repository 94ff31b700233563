from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from .._calls import named_arguments
from .._validate import check_choice, check_count, resolve_rng

# as in `model.likelihoods`, which takes a second to import; a test compares them
LIKELIHOODS = ("normal", "poisson", "negative_binomial", "bernoulli")
CELLS_PER_BLOCK = 1_000
# beyond it float32 skips whole numbers
LARGEST_COUNT = 2**24


@named_arguments
def simulate(  # noqa: PLR0913
    n_cells: int = 500,
    n_genes: int = 300,
    n_factors: int = 5,
    *,
    likelihood: str = "normal",
    mu: float | None = None,
    cell_scale: float | None = None,
    gene_scale: float = 1.0,
    factor_scales: np.ndarray | list[float] | None = None,
    sigma: float | np.ndarray | None = None,
    cell_sigma: float | np.ndarray | None = None,
    theta: float | np.ndarray | None = None,
    depth_spread: float | None = None,
    rng: int | np.random.Generator = 0,
) -> ad.AnnData:
    r"""Draw a data set from the model itself, and keep the truth beside it.

    .. math::

        \eta_{ij} &= \mu + a_i + b_j + A_i \cdot B_j \\
        a_i &\sim \mathcal N(0, \kappa_a^2) \qquad A_{ik} \sim \mathcal N(0, 1) \\
        b_j &\sim \mathcal N(0, \kappa_b^2) \qquad B_{jk} \sim \mathcal N(0, \kappa_{Bk}^2)

    and then, for the four likelihoods,

    .. math::

        \text{normal} \qquad y_{ij} &\sim \mathcal N(\eta_{ij}, \sigma_i^2 \sigma_j^2) \\
        \text{poisson} \qquad y_{ij} &\sim \mathrm{Poisson}(\lambda_{ij}) \\
        \text{negative\_binomial} \qquad y_{ij} &\sim \mathrm{NB}(\lambda_{ij}, \theta_j), \quad
            \mathrm{var}(y_{ij}) = \lambda_{ij} + \lambda_{ij}^2 / \theta_j \\
        \text{bernoulli} \qquad P(y_{ij} = 1) &= 1 - e^{-\lambda_{ij}}

    with rates :math:`\lambda_{ij} = s_i e^{\eta_{ij}}` and size factors :math:`\log s_i \sim \mathcal N(-d^2/2, d^2)`,
    whose mean is 1.

    Parameters
    ----------
    n_cells
        Number of cells (rows).
    n_genes
        Number of genes (columns).
    n_factors
        Number of factors :math:`r`.
    likelihood
        `"normal"`, `"negative_binomial"`, `"poisson"` or `"bernoulli"` (zeros and ones). The defaults below make counts
        as sparse as those of unique molecular identifiers in genes that are well expressed.
    mu
        The overall level :math:`\mu`. By default 0.5 (Normal) or -1.5 (counts, whose log rate it is).
    cell_scale
        Standard deviation :math:`\kappa_a` of cell activity; 0 switches it off. By default 0.3 (Normal) or 0.1
        (counts, whose depth is in the size factors).
    gene_scale
        Standard deviation :math:`\kappa_b` of gene abundance; 0 switches it off.
    factor_scales
        Standard deviations :math:`\kappa_{Bk}` of the gene embedding, one for each factor; 0 makes a factor that is not
        there. By default :math:`1 / \sqrt k` (Normal) or :math:`0.4 / \sqrt k` (counts) for :math:`k = 1, \dots, r`:
        decreasing.
    sigma
        For the Normal: standard deviation of the noise, one number or one for each gene. By default 1.
    cell_sigma
        For the Normal: factor :math:`\sigma_i` of the noise of every cell, one number or one for each cell. By default
        1.
    theta
        For the negative binomial: dispersion :math:`\theta`, one number or one for each gene; the smaller, the more
        counts scatter. By default 5.
    depth_spread
        For counts: standard deviation :math:`d` of log size factors; 0 makes all of them 1. By default 0.5.
    rng
        Seed or generator. The same seed gives the same bits; a generator is advanced.

    Returns
    -------
    A new AnnData with cells `cell_0`, ... and genes `gene_0`, ...:

    `.X` : :class:`numpy.ndarray` or :class:`scipy.sparse.csr_matrix` (dtype `float32`, shape (n_cells, n_genes))
        The values :math:`y`; counts are sparse.
    `.uns['mu']` : :class:`float`
        True :math:`\mu`.
    `.obs['a']` : :class:`pandas.Series` (dtype `float64`, shape (n_cells,))
        True cell activity, as drawn: its mean over the cells is near zero, not zero.
    `.obsm['A']` : :class:`numpy.ndarray` (dtype `float64`, shape (n_cells, n_factors))
        True cell embedding.
    `.var['b']` : :class:`pandas.Series` (dtype `float64`, shape (n_genes,))
        True gene abundance, as drawn.
    `.var['sigma']` : :class:`pandas.Series` (dtype `float64`, shape (n_genes,))
        Normal: true standard deviation of the noise of each gene.
    `.obs['sigma']` : :class:`pandas.Series` (dtype `float64`, shape (n_cells,))
        With `cell_sigma`: true factor of the noise of each cell.
    `.var['theta']` : :class:`pandas.Series` (dtype `float64`, shape (n_genes,))
        Negative binomial: true dispersion of each gene.
    `.obs['size_factor']` : :class:`pandas.Series` (dtype `float64`, shape (n_cells,))
        Counts: true size factors :math:`s`, as drawn.
    `.varm['B']` : :class:`numpy.ndarray` (dtype `float64`, shape (n_genes, n_factors))
        True gene embedding.

    Only :math:`\eta`, and with it the centred :math:`A B^\top`, can be learned from `.X`: rotations of the embeddings
    and shifts between :math:`\mu`, :math:`a` and :math:`b` leave it unchanged.

    Raises
    ------
    TypeError
        If an argument is not a number (or `rng` neither an int nor a generator).
    ValueError
        If a number is out of its range, an array of the wrong length, or an argument belongs to another likelihood.

    Examples
    --------
    >>> import scvi_lfm as lfm
    >>> adata = lfm.datasets.simulate(200, 100, 3, sigma=0.5)
    >>> adata.shape, adata.varm["B"].shape
    ((200, 100), (100, 3))
    >>> counts = lfm.datasets.simulate(200, 100, 3, likelihood="negative_binomial", theta=2)
    >>> counts.obs["size_factor"].shape
    (200,)
    """
    check_choice("likelihood", likelihood, LIKELIHOODS)
    normal = likelihood == "normal"
    _check_owner("sigma", sigma, likelihood, ("normal",))
    _check_owner("cell_sigma", cell_sigma, likelihood, ("normal",))
    _check_owner("theta", theta, likelihood, ("negative_binomial",))
    _check_owner("depth_spread", depth_spread, likelihood, LIKELIHOODS[1:])
    n = check_count("n_cells", n_cells)
    m = check_count("n_genes", n_genes)
    r = check_count("n_factors", n_factors)
    level = _numbers("mu", (0.5 if normal else -1.5) if mu is None else mu, ())
    kappa_a = _scales("cell_scale", (0.3 if normal else 0.1) if cell_scale is None else cell_scale, ())
    kappa_b = _scales("gene_scale", gene_scale, ())
    kappa_B = (
        (1 if normal else 0.4) / np.sqrt(np.arange(1, r + 1))
        if factor_scales is None
        else _scales("factor_scales", factor_scales, (r,))
    )
    noise_scale = np.broadcast_to(_noise_scales("sigma", 1.0 if sigma is None else sigma, m), m)
    cell_noise = np.broadcast_to(_noise_scales("cell_sigma", 1.0 if cell_sigma is None else cell_sigma, n), n)
    dispersion = np.broadcast_to(_dispersions(5.0 if theta is None else theta, m), m)
    excess = 1 / dispersion if likelihood == "negative_binomial" else np.zeros(m)
    spread = _scales("depth_spread", 0.5 if depth_spread is None else depth_spread, ())
    generator = resolve_rng(rng)

    a = kappa_a * generator.standard_normal(n)
    A = generator.standard_normal((n, r))
    b = kappa_b * generator.standard_normal(m)
    B = kappa_B * generator.standard_normal((m, r))
    obs, var = {"a": a}, {"b": b}
    if normal:
        eta = level + a[:, None] + b + A @ B.T
        noise = cell_noise[:, None] * (noise_scale * generator.standard_normal((n, m)))
        values = (eta + noise).astype(np.float32)
        var["sigma"] = noise_scale
        if cell_sigma is not None:
            obs["sigma"] = cell_noise
    else:
        log_size = spread * generator.standard_normal(n) - spread**2 / 2
        values = _draw_counts(likelihood, (level + log_size + a, A), (b, B), excess, generator)
        obs["size_factor"] = np.exp(log_size)
        if likelihood == "negative_binomial":
            var["theta"] = dispersion
    return ad.AnnData(
        values,
        obs=pd.DataFrame(obs, index=[f"cell_{i}" for i in range(n)]),
        var=pd.DataFrame(var, index=[f"gene_{j}" for j in range(m)]),
        obsm={"A": A},
        varm={"B": B},
        uns={"mu": float(level)},
    )


def _draw_counts(
    likelihood: str,
    cells: tuple[np.ndarray, np.ndarray],
    genes: tuple[np.ndarray, np.ndarray],
    excess: np.ndarray,
    generator: np.random.Generator,
) -> sp.csr_matrix:
    """Draw by blocks of cells, so that memory stays at the size of the sparse result."""
    from ..model.likelihoods import COUNTS

    (offset, A), (b, B) = cells, genes
    blocks = []
    for start in range(0, len(A), CELLS_PER_BLOCK):
        rows = slice(start, start + CELLS_PER_BLOCK)
        log_rate = offset[rows, None] + b + A[rows] @ B.T
        _check_counts("rate", np.exp(log_rate.max()))
        drawn = COUNTS[likelihood].sample(np.exp(log_rate), excess, generator)
        _check_counts("count", drawn.max())
        blocks.append(sp.csr_matrix(drawn.astype(np.float32)))
    return sp.vstack(blocks, format="csr")


def _check_counts(what: str, largest: float) -> None:
    if largest > LARGEST_COUNT:
        msg = (
            f"A {what} of {largest:.3g} is more than float32 holds exactly (2^24): "
            "pass a lower `mu`, smaller scales or a larger `theta`."
        )
        raise ValueError(msg)


def _check_owner(name: str, value: object, likelihood: str, owners: tuple[str, ...]) -> None:
    """Raise if an argument was given that the likelihood does not have."""
    if value is not None and likelihood not in owners:
        wanted = " or ".join(map(repr, owners))
        msg = f"`{name}` belongs to likelihood={wanted}, and likelihood is {likelihood!r}. Leave it out."
        raise ValueError(msg)


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


def _noise_scales(name: str, sigma: object, size: int) -> np.ndarray:
    """Standard deviations above zero: one, or one for each of `size` rows."""
    scales = _scales(name, sigma, () if np.ndim(sigma) == 0 else (size,))  # type: ignore[arg-type]
    if (scales == 0).any():
        msg = (
            f"`{name}` must be above 0, found 0; for data that are almost free of noise pass a small number such as "
            "1e-3."
        )
        raise ValueError(msg)
    return scales


def _dispersions(theta: object, n_genes: int) -> np.ndarray:
    """`theta` as numbers above zero: one, or one for each gene."""
    values = _numbers("theta", theta, () if np.ndim(theta) == 0 else (n_genes,))  # type: ignore[arg-type]
    if (values <= 0).any():
        msg = (
            f"`theta` must be above 0, found {values.min():g}; for counts that scatter no more than they must, pass "
            "likelihood='poisson'."
        )
        raise ValueError(msg)
    return values
