"""What a training script on somebody's laptop does, with MLflow's own client and a large artifact.

usage: client.py EXPERIMENT MEGABYTES      where and as whom: MLFLOW_TRACKING_* in the environment
"""

import hashlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import mlflow


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


name, megabytes = sys.argv[1], int(sys.argv[2])
mlflow.set_experiment(name)
with tempfile.TemporaryDirectory() as directory:
    weights = Path(directory, "weights.bin")
    with weights.open("wb") as file:
        for _ in range(megabytes):
            file.write(os.urandom(1 << 20))
    with mlflow.start_run(run_name="from-a-laptop") as run:
        mlflow.log_params({"learning_rate": 0.01})
        for step in range(3):
            mlflow.log_metric("accuracy", 0.5 + step / 10, step=step)
        begin = time.monotonic()
        mlflow.log_artifact(str(weights))
        sent = time.monotonic()
    back = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path="weights.bin", dst_path=directory + "/back")
    got = time.monotonic()
    assert digest(back) == digest(weights), "the artifact came back changed"
    steps = [point.value for point in mlflow.MlflowClient().get_metric_history(run.info.run_id, "accuracy")]
    assert steps == [0.5, 0.6, 0.7], steps

print(json.dumps({"run": run.info.run_id, "experiment": run.info.experiment_id,
                  "up": round(sent - begin, 1), "down": round(got - sent, 1)}))
