"""The command `scvi-lfm` within this process."""

from __future__ import annotations

from scvi_lfm._cli import main


def run(*arguments: object) -> int:
    """Run a command; arguments of any kind are written as a shell would have them."""
    return main([str(argument) for argument in arguments])
