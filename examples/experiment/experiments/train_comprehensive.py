"""Which foretells a chaotic series better: a network that learns its readout, or one that learns all of itself?

Trains both, tells MLflow how it goes, and compares them. What it makes is in $ECHOES_OUT, or in `results` where
nobody names one, with a checkpoint after every epoch: started again, it goes on where it was.

    pip install -r requirements.txt
    python experiments/train_comprehensive.py
    sudo echoes-appliance gpu-run experiments/train_comprehensive.py

It ends with 0 when both have learnt, 1 when one has not, and 143 when it was told to stop (SIGTERM).
"""

import argparse
import json
import os
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path

# Small matrices: a second thread costs more than it brings.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A machine without git is no error.
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

import numpy as np

# For whoever starts it by hand; an experiment of echoes-appliance has its checkout on the path.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from models import LSTM, EchoStateNetwork
from models.mackey_glass import task

EXPERIMENT = "mackey-glass"
MODELS = {model.name: model for model in (EchoStateNetwork, LSTM)}

# Steps at the beginning of a series that nobody is judged by: a network has to find out where it is.
WASHOUT = 100
# What an error is worth: 1 is as good as to say the mean each time. Who is not below a tenth has not learnt.
LEARNT = 0.1


def main():
    arguments = parse()
    out = Path(os.environ.get("ECHOES_OUT", "results"))
    out.mkdir(parents=True, exist_ok=True)
    told = Told(signal.SIGTERM)

    series = task(arguments.seed)
    last, mean = error(series.test.inputs, series.test), error(np.zeros(len(series.test)), series.test)
    print(f"Mackey-Glass, {series.horizon} steps ahead, from {len(series.train)} steps to learn from")
    print(f"to say the last value again: error {last:.2f}; the mean: {mean:.2f}", flush=True)

    results, predictions = {}, {"target": series.test.targets}
    for name in arguments.models:
        epochs = {"epochs": arguments.epochs} if arguments.epochs else {}
        model = MODELS[name](arguments.seed, **epochs)
        results[name], predictions[name] = train(model, series, out / f"{name}.npz", told)

    columns = np.stack(list(predictions.values()), axis=1)
    np.savetxt(out / "predictions.csv", columns, "%.6f", ",", header=",".join(predictions), comments="")
    learnt = all(result["test_error"] < LEARNT for result in results.values())
    baseline = {"last_value": last, "mean": mean}
    summary = {"horizon": series.horizon, "baseline": baseline, "models": results, "learnt": learnt}
    write(out / "results.json", lambda file: file.write(json.dumps(summary, indent=2).encode() + b"\n"))

    print(f"\n{'model':8}{'test error':>12}{'seconds':>10}")
    for name, result in results.items():
        print(f"{name:8}{result['test_error']:12.4f}{result['seconds']:10.1f}")
    if not learnt:
        print(f"not learnt: an error below {LEARNT} was to be reached", file=sys.stderr)
    return 0 if learnt else 1


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--epochs", type=int, help="of each model, in place of its own number")
    parser.add_argument("--seed", type=int, default=7)
    return parser.parse_args()


def train(model, series, checkpoint, told):
    """Learn what is not learnt yet; what came of it, and the predictions for the test."""
    state, done, seconds, run = load(checkpoint)
    if done:
        model.restore(state)
        print(f"{model.name}: going on after epoch {done} of {model.epochs}", flush=True)
    with notes(model, run, {"horizon": series.horizon, "epochs": model.epochs}) as note:
        for epoch in range(done, model.epochs):
            told.obey()
            begun = time.perf_counter()
            loss = model.learn(epoch, series.train)
            seconds += time.perf_counter() - begun
            validation = error(model.predict(series.validation.inputs), series.validation)
            note(epoch, train_loss=loss, validation_error=validation)
            save(checkpoint, model.state(), epoch + 1, seconds, note.run)
            print(f"{model.name}: epoch {epoch + 1:2} of {model.epochs}, error {validation:.4f}", flush=True)
        predictions = model.predict(series.test.inputs)
        test = error(predictions, series.test)
        note(model.epochs, test_error=test, seconds=seconds)
    result = {"test_error": test, "seconds": round(seconds, 2), "epochs": model.epochs, **model.settings}
    return result, predictions


def error(predictions, series):
    """The root of the mean square error, in standard deviations of what was to be said."""
    targets = series.targets[WASHOUT:]
    return float(np.sqrt(np.mean((predictions[WASHOUT:] - targets) ** 2)) / targets.std())


class Told:
    """Whether somebody has asked for the end: this epoch is finished first, and kept."""

    def __init__(self, *signals):
        self.to_stop = False
        for one in signals:
            signal.signal(one, self.hear)

    def hear(self, *_):
        self.to_stop = True

    def obey(self):
        if self.to_stop:
            print("told to stop: started again, it goes on from here", flush=True)
            sys.exit(128 + signal.SIGTERM)


class Note:
    """What is told to MLflow of one model."""

    def __init__(self, mlflow=None, run=None):
        self.mlflow, self.run = mlflow, run

    def __call__(self, step, **metrics):
        if self.mlflow:
            self.mlflow.log_metrics(metrics, step=step)


@contextmanager
def notes(model, run, more):
    """An MLflow run for the model: the checkpoint's, or a new one; none where there is no MLflow."""
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        yield Note()
        return
    # Seconds that nobody waits for who has no MLflow.
    import mlflow

    mlflow.set_experiment(EXPERIMENT)
    with mlflow.start_run(run_id=run, run_name=None if run else model.name) as begun:
        if not run:
            mlflow.log_params({"model": model.name, **model.settings, **more})
        yield Note(mlflow, begun.info.run_id)


def save(checkpoint, state, epoch, seconds, run):
    where = {"epoch": epoch, "seconds": seconds, "run": run}
    write(checkpoint, lambda file: np.savez(file, where=json.dumps(where), **state))


def load(checkpoint):
    """What was learnt, in how many epochs and seconds, and as which run of MLflow's."""
    if not checkpoint.exists():
        return None, 0, 0.0, None
    with np.load(checkpoint) as arrays:
        state = dict(arrays)
    where = json.loads(str(state.pop("where")))
    return state, where["epoch"], where["seconds"], where["run"]


def write(path, fill):
    """Whole, or as it was before: a machine may go at any moment."""
    new = path.with_name(f".{path.name}.new")
    with open(new, "wb") as file:
        fill(file)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


if __name__ == "__main__":
    sys.exit(main())
