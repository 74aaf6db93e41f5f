"""A run's best model in MLflow: an ONNX graph with a signature, logged once, in its round's run.

Where a model can't leave torch, its safetensors file is logged instead. Never a pickle.
"""

from __future__ import annotations

from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from common.loading import describe
from common.logs import get_logger
from common.onnx_models import export_onnx
from common.tasks import Classes, Outputs, Task, Values, load_task_of_run
from common.tasks.inputs import Images
from common.tasks.outputs import describe as describe_outputs
from common.tensor_roles import model_of_run
from common.tensors import Digest, digest_file
from server.mlflow_reporting.runs import Runs
from server.storage import layout
from server.storage.run_files import Line, RunFiles

if TYPE_CHECKING:
    import torch
    from mlflow.models import ModelSignature

log = get_logger()

# The model's name in its run, and the folder of a file that stands for it.
_NAME = "model"


class BestModel:
    """The best model of a run that has ended.

    Args:
        files: the run directory's.
        folder: for the graph.
        named: the run's task, if that is none of the built-in ones.
    """

    def __init__(self, files: RunFiles, folder: Path, named: str | None = None) -> None:
        self._files = files
        self._named = named
        # Known at the end.
        self._about: Line = {}
        self._source = layout.model(files.path, layout.BEST)
        self._graph = folder / "best.onnx"
        self._tried = False
        self._outputs: Outputs = Classes()

    def log(self, runs: Runs, name: str | None) -> None:
        """Log the model, unless it is there; register it under a name, if one is given.

        Raises:
            MlflowException: the server does not answer, or refuses.
        """
        self._about = self._files.model("best") or {}
        number = self._about.get("round", 0)
        run_id = runs.children.get(number)
        if run_id is None:  # It is the initial model.
            return
        runs.client.set_tag(runs.parent_id, "folkmoot.best_round", str(number))
        model_id = _logged(runs, run_id)
        if model_id is None and self._exported():
            model_id = self._log_graph(runs, run_id, number)
            log.info("the best model is in MLflow", round=number, model=f"models:/{model_id}")
        if model_id is None:
            if not runs.client.list_artifacts(run_id, _NAME):
                runs.client.log_artifact(run_id, str(self._source), _NAME)
        elif name:
            _register(runs, name, model_id)

    def _exported(self) -> bool:
        """Write the graph, the first time; return whether there is one."""
        if not self._tried:
            self._tried = True
            try:
                self._export()
            except Exception as error:  # noqa: BLE001 - a task's own model may do anything
                log.warning(
                    "the best model can't be exported to ONNX; MLflow gets its safetensors file",
                    reason=describe(error),
                )
        return self._graph.exists()

    def _export(self) -> None:
        import torch

        torch.set_num_threads(1)
        if digest_file(self._source) != Digest(self._about["blake3"], self._about["size_bytes"]):
            raise ValueError(f"{self._source} is damaged")
        options = self._files.options
        task = load_task_of_run(str(options["task"]), self._named)
        model = model_of_run(task, options, self._source)
        example = _blank(task, Path(str(options["data_dir"])))
        with torch.inference_mode():
            # Whatever its targets: MLflow is told only what the task says, or its loss implies.
            self._outputs = task.outputs_like(model.eval()(example)) or Values()
        # Complete or not there at all.
        unfinished = self._graph.with_suffix(".tmp")
        export_onnx(model, example, unfinished)
        unfinished.rename(self._graph)

    def _log_graph(self, runs: Runs, run_id: str, number: int) -> str:
        import mlflow.onnx
        import onnx
        import onnxruntime
        from mlflow.models import Model

        graph = onnx.load(self._graph)
        made = runs.client.create_logged_model(runs.experiment_id, _NAME, source_run_id=run_id)
        Model.log(
            artifact_path=None,
            flavor=mlflow.onnx,
            model_id=made.model_id,
            run_id=run_id,
            step=number,
            metadata={
                "run_id": self._files.run_id,
                **self._about,
                "outputs": describe_outputs(self._outputs),
            },
            onnx_model=graph,
            signature=_signature(graph, self._outputs),
            input_example=_blank_for(graph),
            # Said, because to find them out MLflow would start a process and load the model.
            pip_requirements=[
                f"{package.__name__}=={package.__version__}" for package in (onnx, onnxruntime, np)
            ],
            save_as_external_data=False,
        )
        return str(made.model_id)


def _logged(runs: Runs, run_id: str) -> str | None:
    """Return the model that a run has; what was left half-way goes."""
    found = None
    for model in runs.client.search_logged_models(
        [runs.experiment_id], f"source_run_id = '{run_id}'"
    ):
        if str(model.status) == "READY":
            found = str(model.model_id)
        else:
            runs.client.delete_logged_model(model.model_id)
    return found


def _register(runs: Runs, name: str, model_id: str) -> None:
    import mlflow

    source = f"models:/{model_id}"
    versions = runs.client.search_model_versions(f"name = '{name}'")
    if source not in [version.source for version in versions]:
        with redirect_stderr(StringIO()):  # It says there what is logged below.
            version = mlflow.register_model(source, name)
        log.info("the best model is registered", name=name, version=version.version)


def _blank(task: Task, data_dir: Path) -> torch.Tensor:
    """Return an input of zeros: its shape is asked for, and nobody's data leave the server."""
    import torch

    match task.inputs:
        case Images(height, width, mean):
            return torch.zeros(2, len(mean), height, width)
        case None:
            return torch.zeros_like(task.data(data_dir, train=False).inputs[:2])
        case _:
            return torch.zeros(2, getattr(task, "length", 2), dtype=torch.int64)


def _dimensions(value: Any) -> tuple[np.dtype[Any], list[int]]:  # noqa: ANN401 - of protobuf
    """Return a graph value's dtype and shape, with -1 for what varies."""
    import onnx.helper

    tensor = value.type.tensor_type
    shape = [-1 if dim.dim_param else dim.dim_value for dim in tensor.shape.dim]
    return onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type), shape


def _signature(graph: Any, outputs: Outputs) -> ModelSignature:  # noqa: ANN401
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    (input_,), (output,) = graph.graph.input, graph.graph.output
    # Without a name, an array will do as an input, too.
    return ModelSignature(
        Schema([TensorSpec(*_dimensions(input_))]),
        Schema([TensorSpec(*_dimensions(output), name=outputs.said)]),
    )


def _blank_for(graph: Any) -> NDArray[Any]:  # noqa: ANN401
    dtype, shape = _dimensions(graph.graph.input[0])
    return np.zeros([abs(size) for size in shape], dtype)
