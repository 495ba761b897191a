"""Settings that must stand before the first import of MuJoCo, MLflow or torch's threads."""

import os

os.environ.setdefault("MUJOCO_GL", "egl")
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # as orrery.py does
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that needs the network is a bug

import pytest


@pytest.fixture(autouse=True)
def own_tracking_store(tmp_path_factory, monkeypatch):
    """No test writes runs into the checkout or into a user's tracking server."""
    store = tmp_path_factory.getbasetemp() / "mlruns.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
