"""The task: the Mackey-Glass equation, a chaotic series whose future depends on its past.

    dx/dt = 0.2 x(t - 17) / (1 + x(t - 17)^10) - 0.1 x(t)

It was made to describe how many blood cells a body keeps (Mackey and Glass, Science 197, 1977), and is what
echo state networks became known by (Jaeger and Haas, Science 304, 2004).
"""

from collections import deque
from dataclasses import dataclass

import numpy as np

DELAY = 17.0
# Of Euler's method. Ten of them make one step of the series.
SUBSTEP = 0.1
# Until nothing is left of how it was begun.
TRANSIENT = 500


@dataclass(frozen=True)
class Series:
    """At each step, what is seen and what is to be said: the value `horizon` steps later."""

    inputs: np.ndarray
    targets: np.ndarray

    def __len__(self):
        return len(self.inputs)


@dataclass(frozen=True)
class Task:
    horizon: int
    train: Series
    validation: Series
    test: Series


def generate(steps, seed):
    """So many steps of the equation. The same for the same seed, on every machine."""
    start = np.random.default_rng(seed).uniform(0.9, 1.5)
    past = deque([start] * round(DELAY / SUBSTEP))
    x, series = start, []
    for substep in range(round((TRANSIENT + steps) / SUBSTEP)):
        before = past.popleft()
        past.append(x)
        x += SUBSTEP * (0.2 * before / (1 + before**10) - 0.1 * x)
        if substep % round(1 / SUBSTEP) == 0:
            series.append(x)
    return np.array(series[TRANSIENT:])


def task(seed, horizon=12, train=4000, validation=1000, test=1000):
    """What is tested with comes last: nobody is asked about what they have seen."""
    values = generate(train + validation + test + horizon, seed)
    values = (values - values[:train].mean()) / values[:train].std()

    def part(begin, length):
        end = begin + length
        return Series(values[begin:end], values[begin + horizon : end + horizon])

    return Task(horizon, part(0, train), part(train, validation), part(train + validation, test))
