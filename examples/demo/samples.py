"""Something to look at: two training runs, in MLflow and as event files. Run by the headquarters' own Python.

usage: samples.py MLFLOW_URL TFRUNS_DIRECTORY
"""

import math
import random
import sys
import tempfile
from pathlib import Path

import mlflow
from tensorboard.summary import Writer

url, tfruns = sys.argv[1], Path(sys.argv[2])
mlflow.set_tracking_uri(url)
mlflow.set_experiment("ucf101-demo")

for name, rate, batch in [("resnet18-slow", 0.001, 32), ("resnet18-fast", 0.01, 64)]:
    chance = random.Random(name)
    events = Writer(str(tfruns / f"demo-{name}"))
    with mlflow.start_run(run_name=name):
        mlflow.log_params({"learning_rate": rate, "batch_size": batch, "frames": 16})
        for step in range(60):
            loss = 4.6 * math.exp(-step * (0.02 + rate * 4)) + 0.05 * chance.random()
            accuracy = 1 - math.exp(-step * (0.015 + rate * 3)) - 0.02 * chance.random()
            mlflow.log_metrics({"loss": loss, "accuracy": accuracy}, step=step)
            events.add_scalar("loss", loss, step)
            events.add_scalar("accuracy", accuracy, step)
        with tempfile.TemporaryDirectory() as directory:
            notes = Path(directory, "notes.md")
            notes.write_text(f"# {name}\n\nMade by `make demo`; no network was trained for this.\n")
            mlflow.log_artifact(str(notes))
    events.close()
