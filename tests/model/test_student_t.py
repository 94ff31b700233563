from __future__ import annotations

import numpy as np
import torch
from scipy.stats import t as student

from scvi_lfm.model import Scales
from scvi_lfm.model.likelihoods import student_t
from scvi_lfm.model.program import observation


def test_log_density_is_scipys_and_the_programs():
    generator = np.random.default_rng(0)
    y, eta, sigma = generator.normal(size=(3, 4)), generator.normal(size=(3, 1)), generator.uniform(0.2, 3, 4)
    wanted = student.logpdf(y, 3.5, eta, sigma)
    df = torch.tensor(3.5, dtype=torch.float64)
    y, eta, sigma = map(torch.from_numpy, (y, eta, sigma))
    np.testing.assert_allclose(student_t.log_density(y, eta, sigma, df), wanted, rtol=1e-12)
    one = torch.ones((), dtype=torch.float64)
    program = observation("student_t", eta, Scales(one, one[None], one, one[None], sigma=sigma, df=df))
    np.testing.assert_allclose(program.log_prob(y), wanted, rtol=1e-12)
