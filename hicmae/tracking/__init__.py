"""Carries studies and run records into MLflow, exactly once; `store` holds the only mlflow import of the project.

    sync(Path("runs"))                 # into runs/_mlflow/mlflow.db, or wherever MLFLOW_TRACKING_URI says

Runs never wait for MLflow: they write their directories, and this reads them, as often as one likes.
"""

from hicmae.tracking.content import Summary
from hicmae.tracking.sync import FOLDER, SyncReport, default_uri, is_up_to_date, study_pages, sync

__all__ = ["FOLDER", "Summary", "SyncReport", "default_uri", "is_up_to_date", "study_pages", "sync"]
