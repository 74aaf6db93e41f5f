"""A process of its own that reports a run to MLflow: `python -m server.tracking RUN_DIR`.

It reads the run directory only, so no MLflow server, however slow, can hold a training up; and it
can be started again at any time, to report what is not yet there.
"""
