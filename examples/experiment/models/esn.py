"""An echo state network: a reservoir of neurons that is wired at random, once, and a readout that is learnt.

The reservoir echoes what it was shown; for how long, its spectral radius says. What is learnt is linear, so it is
solved for and not searched for: by ridge regression, from two sums over all that was seen.
"""

import numpy as np


class EchoStateNetwork:
    name = "esn"

    def __init__(
        self, seed, neurons=300, radius=0.9, density=0.05, leak=0.5, ridge=1e-6, epochs=10, washout=100
    ):
        self.settings = {
            "neurons": neurons,
            "spectral_radius": radius,
            "density": density,
            "leak": leak,
            "ridge": ridge,
            "seed": seed,
        }
        self.epochs, self.washout, self.leak, self.ridge = epochs, washout, leak, ridge
        chance = np.random.default_rng(seed)
        square = (neurons, neurons)
        self.wiring = chance.uniform(-1, 1, square) * (chance.random(square) < density)
        # Below one, what was shown long ago fades: the echo state property.
        self.wiring *= radius / np.abs(np.linalg.eigvals(self.wiring)).max()
        self.entry = chance.uniform(-0.5, 0.5, (neurons, 2))
        # What has been learnt: the state after what was seen, two sums over it, and the readout they come to.
        self.reservoir = np.zeros(neurons)
        self.gram = np.zeros((neurons + 2, neurons + 2))
        self.moment = np.zeros(neurons + 2)
        self.readout = np.zeros(neurons + 2)

    def echo(self, inputs, reservoir):
        """What the readout sees at each step, bias and input beside the neurons; and the last state."""
        seen = np.empty((len(inputs), len(reservoir) + 2))
        for step, value in enumerate(inputs):
            drive = self.entry @ (1.0, value) + self.wiring @ reservoir
            reservoir = (1 - self.leak) * reservoir + self.leak * np.tanh(drive)
            seen[step, 0], seen[step, 1], seen[step, 2:] = 1.0, value, reservoir
        return seen, reservoir

    def learn(self, epoch, series):
        """Read one more part of the series: an epoch of this network is an epoch of the data."""
        begin, end = (len(series) * part // self.epochs for part in (epoch, epoch + 1))
        seen, self.reservoir = self.echo(series.inputs[begin:end], self.reservoir)
        targets = series.targets[begin:end]
        if epoch == 0:
            seen, targets = seen[self.washout :], targets[self.washout :]
        self.gram += seen.T @ seen
        self.moment += seen.T @ targets
        self.readout = np.linalg.solve(self.gram + self.ridge * np.eye(len(self.gram)), self.moment)
        return float(np.mean((seen @ self.readout - targets) ** 2))

    def predict(self, inputs):
        return self.echo(inputs, np.zeros_like(self.reservoir))[0] @ self.readout

    def state(self):
        return {name: getattr(self, name) for name in ("reservoir", "gram", "moment", "readout")}

    def restore(self, state):
        for name, value in state.items():
            setattr(self, name, value)
