"""Runs one training stage (or label blocks) in this process as its only worker, and prints the memory and bytes that it took as JSON.

    python stage_memory.py {teacher,student,tune,rank,label,export} RUN_DIR [key=value ...]

RUN_DIR has dataset/, graph/ and what else the stage reads. Memory is anonymous plus shared pages, sampled in the background, beyond what
the process has once its libraries are loaded: what the plan calls base.
"""

import json
import os
import sys
from pathlib import Path

from promptmm.distributed.execution.session import worker_environment
from promptmm.jobs.settings import load_settings

if os.environ.get("MALLOC_TRIM_THRESHOLD_") is None:  # read when a process starts
    environment = worker_environment(load_settings(None, sys.argv[3:]).cluster)
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **environment, "OMP_NUM_THREADS": "1"})

import memory
import promptmm.distributed.engines.sampled.trainer
import promptmm.graph_store.dgl.standalone  # noqa: F401 - a worker's libraries, DGL's client among them
import pyarrow.dataset  # noqa: F401 - and pandas with it, which reading a Parquet file loads
import torch
from promptmm.core.artifact import read_manifest
from promptmm.core.storage import join
from promptmm.distributed.config import ClusterConfig
from promptmm.distributed.engines.reduction.deepspeed import DeepSpeedReduction
from promptmm.distributed.execution.dataset_graph import DatasetGraph
from promptmm.distributed.execution.local import start_worker
from promptmm.distributed.labels.labeler import open_labeler, stream_here, work_of
from promptmm.distributed.labels.rankings import rank_here
from promptmm.distributed.messages import TuneJob
from promptmm.distributed.run_job import run_job
from promptmm.distributed.surroundings import Surroundings
from promptmm.graph_store.dataset import open_dataset
from promptmm.graph_store.feature_rows import map_features
from promptmm.graph_store.own_features import ItemShard
from promptmm.jobs.runs.worker_jobs import student_job, teacher_job
from promptmm.jobs.verbs import run_verb


class MappedGraph(DatasetGraph):
    """The graph in this process, with the features mapped from the only part's files, as a worker of Ray maps its own."""

    def _item_shard(self) -> ItemShard:
        folder = Path(str(self.graph_url))
        found = {m: map_features(folder, read_manifest(str(folder), "graph"), 0, m) for m in self.dataset.modalities}
        rows, present = {m: x.values() for m, x in found.items()}, {m: torch.from_numpy(x.present) for m, x in found.items()}
        return ItemShard(torch.arange(self.dataset.num_items), rows, present)


def start():
    """This process as the only worker, its libraries loaded, with the process group that DeepSpeed wants."""
    os.environ.update(LOCAL_RANK="0", RANK="0", WORLD_SIZE="1")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    worker = start_worker(1)
    nothing = type("Nothing", (torch.nn.Linear,), {"forward": lambda self: {"x": self.weight}})(1, 1)
    DeepSpeedReduction(nothing, 0.1, torch.float32, ClusterConfig(), worker, ())
    return worker


def run(stage: str, settings, worker) -> None:
    """The stage, as a worker of Ray runs it."""
    if stage == "export":
        run_verb("export", settings)
        return
    dataset = open_dataset(join(settings.dir, "dataset"))
    labels = student_job(settings, dataset, 0).label_job()
    if stage == "rank":
        assert labels.rankings is not None
        rank_here(labels.rankings, dataset)
        return
    if stage == "label":
        labeler = open_labeler(labels, dataset)
        for work in work_of(labels, dataset, range(1))[:3]:
            labeler.write(join(settings.dir, "labels"), work)
        return
    job = teacher_job(settings, dataset) if stage == "teacher" else student_job(settings, dataset, 0)
    if stage == "tune":
        job = TuneJob(job)
    graph = MappedGraph(dataset, join(settings.dir, "graph"))
    run_job(job, worker, Surroundings(dataset, graph, lambda labels, epochs: stream_here(labels, dataset, epochs)))


def main() -> None:
    stage, folder, *overrides = sys.argv[1:]
    settings = load_settings(None, [*overrides, f"run.dir={folder}"])
    worker = start()
    peak = memory.Peak(memory.anonymous_and_shared, 0.002)
    run(stage, settings, worker)
    print("MEASURED " + json.dumps({"beyond": (peak.highest - peak.base) * 2**20}), flush=True)


if __name__ == "__main__":
    main()
