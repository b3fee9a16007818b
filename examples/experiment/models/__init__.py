"""Two ways to see what comes next: a reservoir whose readout alone is learnt, and a network learnt whole.

A model has a `name`, its `settings`, the number of its `epochs`, and four verbs:

    learn(epoch, series)     one epoch of learning; returns its loss
    predict(inputs)          for each step, what will be `horizon` steps later
    state(), restore(state)  all that was learnt so far, as named arrays: a checkpoint
"""

from models.esn import EchoStateNetwork
from models.lstm import LSTM

__all__ = ["LSTM", "EchoStateNetwork"]
