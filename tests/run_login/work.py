"""What scripts do with MLflow's own client, as somebody in particular.

usage: work.py person      leaves what is somebody else's, and says where it is
       work.py run         does all that a run's script does, and says what it made
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import mlflow
import numpy as np
from mlflow.tracking import MlflowClient

VERSION = tuple(int(part) for part in mlflow.__version__.split(".")[:2])
client = MlflowClient()


class Doubler(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return model_input * 2


def log_model(model, name, **more):
    named = {"name": name} if VERSION >= (3, 0) else {"artifact_path": name}
    # Named, or each takes half a minute to find out.
    return mlflow.pyfunc.log_model(python_model=model, pip_requirements=["numpy"], **named, **more)


def write(directory, name, size):
    path = Path(directory, name)
    path.write_bytes(os.urandom(size))
    return str(path)


def trace():
    """A trace; its id. None where this client has none."""
    if VERSION < (2, 14):
        return None
    with mlflow.start_span("outer") as outer:
        outer.set_inputs({"x": 1})
        with mlflow.start_span("inner"):
            pass
        outer.set_outputs({"y": 2})
    if hasattr(mlflow, "flush_trace_async_logging"):
        mlflow.flush_trace_async_logging()
    if hasattr(mlflow, "get_last_active_trace_id"):
        return mlflow.get_last_active_trace_id()
    return mlflow.get_last_active_trace().info.request_id


def person():
    mlflow.set_experiment("others")
    with tempfile.TemporaryDirectory() as directory, mlflow.start_run(run_name="theirs") as run:
        mlflow.log_metric("loss", 0.5)
        mlflow.log_artifact(write(directory, "weights.bin", 1000))
        info = log_model(Doubler(), "model")
    said = {"run": run.info.run_id, "experiment": run.info.experiment_id, "model": getattr(info, "model_id", None)}
    mlflow.register_model(f"runs:/{run.info.run_id}/model", "teams-model")
    said["trace"] = trace()
    empty = client.create_experiment("empty")
    return {**said, "empty": empty}


def run():
    said = {"runs": []}
    mlflow.set_experiment("shared")
    if hasattr(mlflow, "enable_system_metrics_logging"):
        mlflow.enable_system_metrics_logging()
        mlflow.set_system_metrics_sampling_interval(0.2)
        mlflow.set_system_metrics_samples_before_logging(1)
    with tempfile.TemporaryDirectory() as directory, mlflow.start_run(run_name="outer", tags={"a": "b"}) as outer:
        said["runs"].append(outer.info.run_id)
        mlflow.log_params({"lr": 0.01, "depth": 3})
        mlflow.log_param("one", 1)
        mlflow.log_metric("loss", 0.25)
        mlflow.log_metrics({"third": 1 / 3, "tiny": 5e-324, "big": 1.7976931348623157e308}, step=3)
        mlflow.set_tag("mlflow.note.content", "a note")
        mlflow.set_tags({"x": "1", "y": "ü"})
        mlflow.log_text("hello", "a folder/ü & ?#%.txt")
        mlflow.log_dict({"a": 1}, "d.json")
        mlflow.log_table({"q": ["a"], "r": ["b"]}, "table.json")
        mlflow.log_image(np.zeros((8, 8, 3), dtype=np.uint8), "image.png")
        mlflow.log_input(mlflow.data.from_numpy(np.arange(10)), context="training")
        big = write(directory, "big.bin", 40 << 20)
        mlflow.log_artifact(big)
        for n in range(2):
            with mlflow.start_run(run_name=f"inner{n}", nested=True) as inner:
                said["runs"].append(inner.info.run_id)
                mlflow.log_metric("n", n)
        time.sleep(1)
        info = log_model(Doubler(), "model", registered_model_name="own-model")
        # Before, MLflow 3.1 could not log the model: it takes no number of a run for a new one where it is no number.
        mlflow.log_metric("nothing", float("nan"))
        back = mlflow.artifacts.download_artifacts(run_id=outer.info.run_id, artifact_path="big.bin", dst_path=directory + "/back")
        assert Path(back).read_bytes() == Path(big).read_bytes(), "the artifact came back changed"
        names = {file.path for file in client.list_artifacts(outer.info.run_id)}
        assert {"a folder", "d.json", "table.json", "image.png", "big.bin"} <= names, names
        text = mlflow.artifacts.load_text(f"{outer.info.artifact_uri}/a folder/ü & ?#%.txt")
        assert text == "hello", text
    data = client.get_run(outer.info.run_id).data
    assert (data.metrics["third"], data.metrics["tiny"]) == (1 / 3, 5e-324), data.metrics
    assert data.metrics["big"] == 1.7976931348623157e308, data.metrics
    assert data.tags["y"] == "ü" and data.params["lr"] == "0.01", data
    if hasattr(mlflow, "enable_system_metrics_logging"):
        assert any(name.startswith("system/") for name in data.metrics), data.metrics
        mlflow.disable_system_metrics_logging()
    mlflow.register_model(f"runs:/{outer.info.run_id}/model", "own-model")
    client.set_registered_model_alias("own-model", "best", "2")
    loaded = mlflow.pyfunc.load_model("models:/own-model/1")
    assert list(loaded.predict(np.array([1, 2]))) == [2, 4]
    loaded = mlflow.pyfunc.load_model(info.model_uri)
    assert list(loaded.predict(np.array([1, 2]))) == [2, 4]
    said["model"] = getattr(info, "model_id", None)

    # A batch as large as one may be: over a megabyte of it.
    from mlflow.entities import Metric, Param, RunTag

    many = [Metric(f"m{n}", n / 7, 1700000000000 + n, n) for n in range(700)]
    tags = [RunTag(f"t{n}", "v" * 5000) for n in range(100)]
    client.log_batch(outer.info.run_id, metrics=many, params=[Param(f"p{n}", "v") for n in range(100)], tags=tags)
    assert client.get_metric_history(outer.info.run_id, "m6")[0].value == 6 / 7

    mlflow.autolog(log_models=True)
    from sklearn.linear_model import LinearRegression
    from sklearn.model_selection import GridSearchCV

    x = np.arange(20.0).reshape(10, 2)
    with mlflow.start_run(run_name="autolog") as auto:
        GridSearchCV(LinearRegression(), {"fit_intercept": [True, False]}, cv=2).fit(x, x.sum(axis=1))
    mlflow.autolog(disable=True)
    said["runs"].append(auto.info.run_id)
    names = [file.path for file in client.list_artifacts(auto.info.run_id)]
    assert "best_estimator" in names or VERSION >= (3, 0), names
    found = client.search_runs([auto.info.experiment_id], max_results=100)
    children = [one for one in found if one.data.tags.get("mlflow.parentRunId") == auto.info.run_id]
    assert len(children) == 2, [one.data.tags for one in found]
    said["runs"] += [one.info.run_id for one in children]

    said["trace"] = trace()
    if said["trace"] and hasattr(client, "set_trace_tag"):
        client.set_trace_tag(said["trace"], "mine", "1")
        kept = client.get_trace(said["trace"])
        assert len(kept.data.spans) == 2, kept
    client.set_terminated(outer.info.run_id, "FINISHED")
    said["experiment"] = auto.info.experiment_id
    said["artifacts"] = outer.info.artifact_uri
    return said


print(json.dumps({"person": person, "run": run}[sys.argv[1]]()))
