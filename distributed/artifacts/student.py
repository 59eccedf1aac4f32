"""Writes the trained student: final vectors, weights and facts in training/student/model, which export turns into the serving bundle."""

from torch import Tensor

from ...core.artifact import write_artifact
from ...core.config import as_dict
from ...core.sides import SIDE_NAMES
from ...core.storage import join
from ...core.tensor_file import save_tensors
from ..loop.selection import Selection
from ..loop.stage import stage_url
from ..messages import StudentJob
from .output import Output


def write_student(job: StudentJob, output: Output, selection: Selection, weights: dict[str, Tensor]) -> int:
    """Writes the trained student on rank 0, whose memory holds all of it: a student that ships fits one machine.

    Args:
        job: The student's job.
        output: Final vectors and trained rows of the best epoch.
        selection: The selection of the best epoch.
        weights: The model's weights beside its rows.

    Returns:
        The number of trained parameters.
    """
    learnt = {f"ids.{name}": rows for name, rows in zip(SIDE_NAMES, output.whole(output.ids))} if output.ids is not None else {}
    tensors = {name: t.detach().cpu() for name, t in {**weights, **learnt}.items()}
    num_parameters = sum(t.numel() for t in tensors.values())
    facts = {
        "best_epoch": selection.best_epoch,
        "selected_by": selection.metric,
        "num_parameters": num_parameters,
        "config": as_dict(job.config),
        "distillation": as_dict(job.distill),
        "seed": job.seed,
        "lineage": job.lineage,
    }
    vectors = dict(zip(SIDE_NAMES, output.whole(output.vectors["final"])))
    with write_artifact(join(stage_url(job.run_url, "student"), "model"), "student-model", facts) as folder:
        save_tensors(folder / "vectors.safetensors", vectors)
        save_tensors(folder / "weights.safetensors", tensors)
    return num_parameters
