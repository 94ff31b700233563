"""Learning rates of the running averages."""

# Hoffman et al. 2013, section 2.4
DELAY, FORGETTING = 1.0, 0.7


def learning_rate(step: int) -> float:
    """Rate of step 1, 2, ...: `(step + DELAY)^-FORGETTING`, whose sum diverges and whose squares' sum does not."""
    return (step + DELAY) ** -FORGETTING
