"""python -m unittest: what is easy to get wrong in a network written by hand."""

import sys
import unittest
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from models import LSTM, EchoStateNetwork
from models.mackey_glass import task


class Gradient(unittest.TestCase):
    def test_back_propagation_agrees_with_finite_differences(self):
        model = LSTM(seed=1, hidden=5, window=9, washout=2, dtype=np.float64)
        chance = np.random.default_rng(2)
        inputs, targets = chance.normal(size=(2, 9, 3))
        _, slope = model.loss(inputs, targets)
        small = 1e-6
        for name, weights in model.weights.items():
            for at in np.ndindex(weights.shape):
                kept, sides = weights[at], []
                for side in (small, -small):
                    weights[at] = kept + side
                    sides.append(model.loss(inputs, targets)[0])
                weights[at] = kept
                expected = (sides[0] - sides[1]) / (2 * small)
                self.assertAlmostEqual(slope[name][at], expected, places=7, msg=f"{name}{at}")


class Reservoir(unittest.TestCase):
    def test_two_states_become_one_under_the_same_input(self):
        model = EchoStateNetwork(seed=3, neurons=60)
        inputs = task(seed=4, train=300, validation=50, test=50).train.inputs
        ends = [model.echo(inputs, start)[1] for start in np.random.default_rng(5).uniform(-1, 1, (2, 60))]
        np.testing.assert_allclose(*ends, atol=1e-6)


class Checkpoints(unittest.TestCase):
    def test_who_goes_on_from_one_learns_the_same(self):
        series = task(seed=6, train=600, validation=50, test=50).train
        for make in (lambda: EchoStateNetwork(1, neurons=40, epochs=4), lambda: LSTM(1, hidden=6, epochs=4)):
            whole, first, second = make(), make(), make()
            for epoch in range(4):
                whole.learn(epoch, series)
            for epoch in range(2):
                first.learn(epoch, series)
            second.restore({name: array.copy() for name, array in first.state().items()})
            for epoch in range(2, 4):
                second.learn(epoch, series)
            for name, array in whole.state().items():
                np.testing.assert_array_equal(array, second.state()[name], err_msg=name)


if __name__ == "__main__":
    unittest.main()
