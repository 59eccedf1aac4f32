"""Declares the settings of evaluation."""

from dataclasses import dataclass

from ..errors import InputError
from ..kinds import METRICS
from ..metric_names import check_metric
from ..settings import check_bounds, setting


@dataclass(frozen=True)
class EvaluationConfig:
    """Settings of full-ranking evaluation (docs/method.md 5); section `evaluation`."""

    cutoffs: list[int] = setting([10, 20, 50], "list lengths K of the reported metrics")
    select_by: str = setting("recall@20", "validation metric that chooses the epoch")
    memory_mib: int = setting(256, "memory for one block of scores, MiB", ge=1)
    metrics: list[str] = setting([], "further metrics of your own, each as module:function")

    def __post_init__(self) -> None:
        check_bounds(self, "evaluation")
        if not self.cutoffs or any(k < 1 for k in self.cutoffs):
            raise InputError(f"evaluation.cutoffs={self.cutoffs}: name at least one list length, each at least 1")
        for further in self.metrics:
            METRICS.check(further)
        check_metric("evaluation.select_by", self.select_by, self.metric_names, self.cutoffs)

    @property
    def metric_names(self) -> list[str]:
        """Returns the names of all metrics that an evaluation computes."""
        return [*METRICS.names, *(name for name in self.metrics if name not in METRICS.names)]

    def check_catalog(self, num_items: int) -> None:
        """Raises InputError where a cutoff is larger than the catalog."""
        if max(self.cutoffs) > num_items:
            raise InputError(f"evaluation.cutoffs={self.cutoffs}: {max(self.cutoffs)} is larger than the catalog of {num_items} items")
