"""What the processes of every stage need together on the fullest host, and whether a host has as much."""

import os
from dataclasses import dataclass, replace

from ...core.errors import InputError
from ...core.memory import memory_limit
from ..runs.worker_jobs import uses_graph
from ..settings import Settings
from . import kinds
from .block_sizes import Estimate
from .export_needs import exporter
from .label_needs import evaluator, histories, labeler, ranker
from .server_needs import graph_server
from .sizes import BASE, Need, Sizes
from .student_needs import STUDENT_TABLES, student_worker
from .teacher_needs import teacher_floats, teacher_worker
from .tuning_needs import prompt_tuner, tuning_floats
from .units import GIB

AROUND = ("driver", "Ray")  # what an embedded run has on its machine beside its roles


@dataclass(frozen=True)
class Stage:
    """What is alive at the same time on the fullest host.

    Attributes:
        name: Of the stage.
        roles: Every role, with its number of processes.
    """

    name: str
    roles: tuple[tuple[Need, int], ...]

    @property
    def total(self) -> int:
        """Bytes of all processes together."""
        return sum(need.total * count for need, count in self.roles)


def is_embedded(settings: Settings) -> bool:
    """Whether the whole run shares this machine."""
    return is_local(settings) or (settings.cluster.address is None and "RAY_ADDRESS" not in os.environ)


def is_local(settings: Settings) -> bool:
    """Whether the whole run is one process."""
    return settings.cluster.executor == "local"


def available_memory(settings: Settings) -> int | None:
    """Bytes of memory of the smallest host that runs workers; None for a cluster whose hosts may not be up before work is asked for."""
    if settings.cluster.host_memory is not None:
        return int(settings.cluster.host_memory * GIB)
    if not is_embedded(settings):
        return None
    return memory_limit()


def stages_of(settings: Settings, sizes: Sizes, blocks: Estimate, most: Estimate) -> list[Stage]:
    """Lists the stages of a run, and what each of them runs on the fullest host.

    Args:
        settings: Of the run, with its engine.
        sizes: Of the catalog.
        blocks, most: Sizes of one worker's blocks, expected and at most.
    """
    has_ray = is_embedded(settings) and not is_local(settings)
    around = [(Need(role, BASE[role], {}, "all the time", 0, BASE[role], ""), 1) for role in AROUND] if has_ray else []
    # The workers of a cluster of the run's own are kept from the first stage to the last; they evaluate, too.
    kept = (
        [(Need("kept worker", BASE["worker"], {}, "all the time", 0, BASE["worker"], ""), settings.cluster.num_workers)] if has_ray else []
    )
    workers, sampled = _workers(settings), settings.cluster.engine == "sampled"
    labelers = labeler(settings, sizes), settings.cluster.num_labelers if is_embedded(settings) else 1
    ranks = ranker(settings, sizes)
    inline, streamed = settings.distill.regime == "inline", settings.labels.mode == "streamed"
    shared = settings.labels.run is not None  # teacher and labels are another run's
    stages: dict[str, list[tuple[Need, int]]] = {}
    if sizes.taught and not shared:
        stages["train-teacher"] = [(teacher_worker(settings, sizes, blocks, most), workers)]
        stages["train-teacher"] += _servers("train-teacher", settings, sizes, teacher_floats(settings, sizes) if sampled else 0)
    if ranks is not None and not shared:
        stages["rank"] = [(ranks, labelers[1]), *kept]
    if sizes.taught and not inline and not streamed and not shared:
        stages["label"] = [labelers, *kept]
    stages["distill"] = [(student_worker(settings, sizes, blocks, most), workers)]
    if sampled or sizes.taught:
        stages["distill"] += _servers("distill", settings, sizes, STUDENT_TABLES * sizes.nodes * settings.student.dim if sampled else 0)
    if sizes.taught and not inline and streamed:
        stages["distill"].append((labelers[0], labelers[1] * workers))
    if sizes.taught and settings.distill.rounds > 1:
        servers = _servers("tune-prompt", settings, sizes, tuning_floats(settings, sizes) if sampled else 0)
        stages["tune-prompt"] = [(prompt_tuner(settings, sizes, blocks, most), workers), *servers]
    if sizes.taught:
        ranked = evaluator(sizes, kinds.final_dim(settings.teacher, sizes), "teacher", histories(settings, sizes))
        stages["evaluate (teacher)"] = [(ranked, workers)]
    stages["evaluate (student)"] = [(evaluator(sizes, settings.student.dim, "student"), workers)]
    of_command = [(need, count) for need, count in around if need.role != "driver"]  # the exporter is the driver
    export = Stage("export", ((exporter(settings, sizes), 1), *kept, *of_command))
    return [*(Stage(name, (*roles, *around)) for name, roles in stages.items()), export]


def _workers(settings: Settings) -> int:
    """Workers on the fullest host. A cluster spreads the full engine's, one a host; the sampled engine has a host for every part."""
    num_workers = settings.cluster.num_workers
    if is_embedded(settings):
        return num_workers
    return -(-num_workers // settings.graph.num_parts) if settings.cluster.engine == "sampled" else 1


def _servers(stage: str, settings: Settings, sizes: Sizes, floats: int) -> list[tuple[Need, int]]:
    """The graph server on the host, with tables of a stage where the engine samples; none where the stage does not read from it."""
    if not uses_graph(settings, stage):
        return []
    need = graph_server(settings, sizes, floats)
    return [(replace(need, role=f"graph server ({stage})") if floats else need, 1)]


def check_fits(stages: list[Stage], available: int | None) -> None:
    """Checks that every process, and what shares a host, fits the memory of a host.

    Args:
        stages: Of the run.
        available: Bytes of memory of the smallest host, None where it is not known yet.

    Raises:
        InputError: something does not; the message has the largest number and the setting that changes it.
    """
    if available is None:
        return
    for stage in stages:
        for need, _ in stage.roles:
            if need.parts and need.total > available:
                part, size = max(need.parts.items(), key=lambda entry: entry[1])
                raise InputError(
                    f"plan: a {need.role} needs {need.total / GIB:.1f} GiB and the smallest host has {available / GIB:.1f} GiB; most of it "
                    f"is {part} ({size / GIB:.1f} GiB). Change {need.setting}, or run on larger hosts"
                )
    for stage in stages:
        if stage.total > available:
            need, count = max((role for role in stage.roles if role[0].parts), key=lambda role: role[0].total * role[1])
            raise InputError(
                f"plan: {stage.name} needs {stage.total / GIB:.1f} GiB on one host, which has {available / GIB:.1f} GiB; most of it is "
                f"{count} x {need.role} ({need.total / GIB:.1f} GiB each). Change {need.setting}, or run on more or larger hosts"
            )
