"""A long short-term memory, all of it learnt: by back-propagation through time, and Adam.

Nothing but NumPy: every step can be read here. `tests/` compares the gradient with finite differences.
"""

import numpy as np


def sigmoid(x):
    # By tanh: an exponential would overflow for what is far below zero.
    return 0.5 + 0.5 * np.tanh(0.5 * x)


class LSTM:
    name = "lstm"

    def __init__(
        self, seed, hidden=32, window=64, washout=24, batch=64, rate=2e-2, epochs=12, dtype=np.float32
    ):
        self.settings = {
            "hidden": hidden,
            "window": window,
            "washout": washout,
            "batch": batch,
            "learning_rate": rate,
            "seed": seed,
        }
        self.hidden, self.window, self.washout = hidden, window, washout
        self.batch, self.rate, self.epochs, self.seed = batch, rate, epochs, seed
        chance = np.random.default_rng(seed)
        # Rows: input, hidden state, bias. Columns: the gates in, forget and out, and the candidate.
        gates = chance.normal(0, 1 / np.sqrt(hidden + 1), (hidden + 2, 4 * hidden))
        # To remember comes first; to forget is learnt.
        gates[-1] = np.repeat([0.0, 1.0, 0.0, 0.0], hidden)
        readout = chance.normal(0, 1 / np.sqrt(hidden), hidden + 1)
        readout[-1] = 0
        self.weights = {"gates": gates.astype(dtype), "readout": readout.astype(dtype)}
        self.first = {name: np.zeros_like(weight) for name, weight in self.weights.items()}
        self.second = {name: np.zeros_like(weight) for name, weight in self.weights.items()}
        self.steps = 0

    def forward(self, inputs):
        """From inputs of (steps, batch) to outputs of the same shape; and what the way back needs."""
        gates, readout = self.weights["gates"], self.weights["readout"]
        hidden, batch = self.hidden, inputs.shape[1]
        h = c = np.zeros((batch, hidden), gates.dtype)
        outputs, memory = np.empty_like(inputs), []
        for step, x in enumerate(inputs):
            seen = np.concatenate([x[:, None], h, np.ones_like(x)[:, None]], axis=1)
            drive = seen @ gates
            i, f, o = np.split(sigmoid(drive[:, : 3 * hidden]), 3, axis=1)
            g = np.tanh(drive[:, 3 * hidden :])
            before, c = c, f * c + i * g
            squashed = np.tanh(c)
            h = o * squashed
            outputs[step] = h @ readout[:-1] + readout[-1]
            memory.append((seen, i, f, o, g, before, squashed, h))
        return outputs, memory

    def backward(self, errors, memory):
        """From the loss's slope at each output to that at each weight, from the last step to the first."""
        gates, readout = self.weights["gates"], self.weights["readout"]
        slope = {name: np.zeros_like(weight) for name, weight in self.weights.items()}
        dh = dc = np.zeros_like(memory[0][-1])
        for error, (seen, i, f, o, g, before, squashed, h) in zip(errors[::-1], memory[::-1]):
            slope["readout"][:-1] += error @ h
            slope["readout"][-1] += error.sum()
            dh = dh + np.outer(error, readout[:-1])
            dc = dc + dh * o * (1 - squashed**2)
            di, df, do = dc * g * i * (1 - i), dc * before * f * (1 - f), dh * squashed * o * (1 - o)
            ddrive = np.concatenate([di, df, do, dc * i * (1 - g**2)], axis=1)
            slope["gates"] += seen.T @ ddrive
            dh, dc = ddrive @ gates[1:-1].T, dc * f
        return slope

    def loss(self, inputs, targets):
        """The mean square error after the washout, in which the network finds out where it is; its slope."""
        outputs, memory = self.forward(inputs)
        errors = outputs - targets
        errors[: self.washout] = 0
        count = errors[self.washout :].size
        return float(np.sum(errors**2) / count), self.backward(2 * errors / count, memory)

    def descend(self, slope, rate):
        """One step of Adam, down a slope that is never steeper than one."""
        self.steps += 1
        length = np.sqrt(sum(float(np.sum(part**2)) for part in slope.values()))
        for name, part in slope.items():
            part = part / max(1.0, length)
            self.first[name] += 0.1 * (part - self.first[name])
            self.second[name] += 0.001 * (part**2 - self.second[name])
            first = self.first[name] / (1 - 0.9**self.steps)
            second = self.second[name] / (1 - 0.999**self.steps)
            self.weights[name] -= rate * first / (np.sqrt(second) + 1e-8)

    def learn(self, epoch, series):
        """Windows from all over the series, in an order of the epoch's own."""
        chance = np.random.default_rng([self.seed, epoch])
        starts = chance.permutation(np.arange(chance.integers(4), len(series) - self.window, 4))
        dtype, losses = self.weights["gates"].dtype, []
        # Ever smaller steps, along a quarter of a wave.
        rate = self.rate * np.cos(np.pi / 2 * epoch / self.epochs)
        inputs, targets = series.inputs.astype(dtype), series.targets.astype(dtype)
        for first in range(0, len(starts) - self.batch + 1, self.batch):
            steps = np.arange(self.window)[:, None] + starts[first : first + self.batch]
            loss, slope = self.loss(inputs[steps], targets[steps])
            self.descend(slope, rate)
            losses.append(loss)
        return float(np.mean(losses))

    def predict(self, inputs):
        dtype = self.weights["gates"].dtype
        return self.forward(inputs.astype(dtype)[:, None])[0][:, 0]

    def state(self):
        parts = {"weights": self.weights, "first": self.first, "second": self.second}
        arrays = {f"{part}.{name}": array for part, all in parts.items() for name, array in all.items()}
        return {**arrays, "steps": np.array(self.steps)}

    def restore(self, state):
        self.steps = int(state["steps"])
        for name, array in state.items():
            if "." in name:
                part, name = name.split(".")
                getattr(self, part)[name] = array
