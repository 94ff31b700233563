"""Element-wise work compiled into few kernels: only where it is asked for, with the same numbers, or not at all."""

from __future__ import annotations

import logging
import shutil

import numpy as np
import pytest
import torch

from scvi_lfm import _compile
from scvi_lfm._compile import compiled, fused
from scvi_lfm.inference.counts.cell_step import working_responses
from scvi_lfm.model.likelihoods import LIKELIHOODS

CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def forgotten():
    compiled.cache_clear()
    yield
    compiled.cache_clear()


def double(x: torch.Tensor) -> torch.Tensor:
    """A function of tensors."""
    return 2 * x


def test_only_a_gpu_compiles_and_only_where_settings_ask_for_it(settings):
    assert fused(double, torch.device("cpu")) is double
    assert fused(double, CUDA) is double
    settings.compile = True
    assert fused(double, torch.device("cpu")) is double
    assert fused(double, CUDA) is not double
    assert fused(double, CUDA) is fused(double, CUDA)


@pytest.mark.slow
def test_where_it_fails_the_function_itself_is_used_and_it_is_said_once(monkeypatch, caplog):
    calls = []

    def fails(*args: object) -> None:
        calls.append(args)
        msg = "no C compiler\nand a long trace"
        raise torch._dynamo.exc.TorchDynamoException(msg)

    monkeypatch.setattr(_compile.torch, "compile", lambda function, dynamic: fails)
    run = compiled(double)
    with caplog.at_level(logging.WARNING, "scvi_lfm"):
        assert [run(torch.ones(2)).tolist() for _ in range(3)] == [[2.0, 2.0]] * 3
    assert len(calls) == 1
    assert [record.getMessage() for record in caplog.records] == [
        "settings.compile has no effect here, as torch.compile fails: no C compiler"
    ]


def test_errors_of_the_function_are_its_own(monkeypatch):
    def fails(x: torch.Tensor) -> None:
        msg = "CUDA out of memory"
        raise torch.OutOfMemoryError(msg)

    monkeypatch.setattr(_compile.torch, "compile", lambda function, dynamic: function)
    with pytest.raises(torch.OutOfMemoryError):
        compiled(fails)(torch.ones(2))


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
@pytest.mark.parametrize("likelihood", ["negative_binomial", "poisson", "bernoulli"])
def test_compiled_entries_are_the_same(likelihood, device):
    """Kernels of another kind: a product and a sum may be rounded once, not twice."""
    rng = np.random.default_rng(0)

    def given(n_cells: int, n_genes: int) -> tuple:
        linear = rng.normal(scale=0.5, size=(n_cells, n_genes))
        log_rate = linear + rng.normal(size=(n_cells, 1)) + 0.1 * rng.random(linear.shape)
        y = rng.poisson(1.0, size=linear.shape).clip(max=1 if likelihood == "bernoulli" else None)
        dispersion = rng.gamma(1.0, size=n_genes)
        return tuple(torch.from_numpy(part.astype(np.float32)).to(device) for part in (y, linear, log_rate, dispersion))

    of_likelihood = LIKELIHOODS[likelihood]
    run = compiled(working_responses)
    for shape in ((40, 30), (17, 64)):
        y, linear, log_rate, dispersion = given(*shape)
        parameters = (dispersion,) if of_likelihood.learns_dispersion else (torch.zeros((), device=device),)
        parameters = parameters if of_likelihood.has_rate else ()
        rest = None, parameters, None, torch.tensor(0.3, device=device)
        found = run(of_likelihood, y, linear.clone(), log_rate.clone(), *rest)
        expected = working_responses(of_likelihood, y, linear.clone(), log_rate.clone(), *rest)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one.cpu(), other.cpu(), rtol=0, atol=2e-6 * float(other.abs().max()))
