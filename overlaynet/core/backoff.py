"""How long to wait before trying again."""

from __future__ import annotations

BASE_S = 0.1
CAP_S = 30.0


def delay(attempt: int, jitter: float, first_s: float = BASE_S) -> float:
    """Seconds before attempt number `attempt` + 1 (the first is 1): doubling from `first_s` to 30, plus up to
    a tenth. `jitter` is a number in [0, 1) from the caller, so that many hosts do not come back at once.
    """
    return min(CAP_S, first_s * 2.0 ** min(attempt - 1, 16)) * (1 + 0.1 * jitter)
