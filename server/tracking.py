"""`python -m server.tracking RUN_DIR` is `python -m server.mlflow_reporting RUN_DIR`."""

import runpy

runpy.run_module("server.mlflow_reporting", run_name="__main__", alter_sys=True)
