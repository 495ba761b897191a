"""MLflow, with its telemetry off. `MLFLOW_TRACKING_URI` is honoured; without it a local SQLite store is
used."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["DO_NOT_TRACK"] = "true"


class Run:
    """One MLflow run, or nothing at all when tracking is off."""

    def __init__(self, mlflow: Any):
        self._mlflow = mlflow

    def params(self, values: dict[str, Any]) -> None:
        if self._mlflow:
            self._mlflow.log_params({name: str(value)[:500] for name, value in values.items()})

    def metrics(self, values: dict[str, float], step: int) -> None:
        if self._mlflow:
            self._mlflow.log_metrics(
                {name: value for name, value in values.items() if value == value}, step=step
            )

    def artifact(self, path: Path) -> None:
        if self._mlflow:
            self._mlflow.log_artifact(str(path))


@contextmanager
def tracked_run(experiment: str, name: str, track: bool) -> Iterator[Run]:
    """An MLflow run that ends when the block does (as failed, if by an exception)."""
    if not track:
        yield Run(None)
        return
    import mlflow  # takes seconds, so only where it is used

    if not os.environ.get("MLFLOW_TRACKING_URI"):
        mlflow.set_tracking_uri(f"sqlite:///{Path('mlruns.db').resolve()}")
        if mlflow.get_experiment_by_name(experiment) is None:
            mlflow.create_experiment(experiment, artifact_location=Path("mlartifacts").resolve().as_uri())
    mlflow.set_experiment(experiment)
    with mlflow.start_run(run_name=name):
        yield Run(mlflow)
