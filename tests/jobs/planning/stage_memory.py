"""Runs one training stage (or label blocks) in this process as its only worker, and prints the memory and bytes that it took as JSON.

    python stage_memory.py {teacher,student,label} RUN_DIR [key=value ...]

RUN_DIR has dataset/, graph/ and what else the stage reads. Memory is anonymous plus shared pages, sampled in the background, beyond what
the process has once its libraries are loaded: what the plan calls base.
"""

import json
import os
import sys
from pathlib import Path

from promptmm.distributed.config import ClusterConfig
from promptmm.distributed.launch import worker_environment
from promptmm.jobs.settings import load_settings

if os.environ.get("MALLOC_TRIM_THRESHOLD_") is None:  # read when a process starts
    environment = worker_environment(load_settings(None, sys.argv[3:]).cluster)
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **environment, "OMP_NUM_THREADS": "1"})

import dgl.distributed
import memory
import torch
from promptmm.core.storage import join, read_manifest
from promptmm.distributed.deepspeed_engine import ReductionEngine, prepare_extensions
from promptmm.distributed.labels import Labeler
from promptmm.distributed.resident import build_resident
from promptmm.distributed.sampled_student import train_sampled_student
from promptmm.distributed.sampled_training import train_sampled_teacher
from promptmm.distributed.student_training import run_student, train_graph
from promptmm.distributed.teacher_training import TeacherJob, run_teacher
from promptmm.distributed.worker import Worker
from promptmm.graph_store.backend import PartLocation, Session
from promptmm.graph_store.dataset import open_dataset
from promptmm.graph_store.dgl.client import GraphClient
from promptmm.graph_store.feature_rows import map_features
from promptmm.graph_store.own_features import ItemShard
from promptmm.jobs.runs.worker_jobs import student_job


def start():
    """This process as the only worker, its libraries loaded."""
    torch.set_num_threads(1)
    os.environ.update(LOCAL_RANK="0", RANK="0", WORLD_SIZE="1", DGL_DIST_MODE="standalone")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    worker = Worker(0, 1, torch.device("cpu"), ("here",))
    prepare_extensions()
    nothing = type("Nothing", (torch.nn.Linear,), {"forward": lambda self: {"x": self.weight}})(1, 1)
    ReductionEngine(nothing, 0.1, torch.float32, ClusterConfig(), worker, ())
    dgl.distributed.initialize(None)
    return worker


def run(stage: str, settings, worker) -> None:
    """The stage, as its Ray Train loop runs it."""
    dataset, graph_url = open_dataset(join(settings.dir, "dataset")), Path(settings.dir) / "graph"
    sampled = settings.cluster.engine == "sampled"
    if stage == "label":
        labeler = Labeler(student_job(settings, dataset, 0).label_job())
        for block in range(min(3, labeler.job.num_blocks)):
            labeler.table(0, block)
        return
    if sampled:
        graph = dgl.distributed.DistGraph("promptmm", part_config=str(graph_url / "promptmm.json"))
        session = Session("alone", str(graph_url), (PartLocation("here", str(graph_url)),))
        client = GraphClient(graph, session, graph_url, 0, ["here"])
    job = TeacherJob(
        settings.dir, settings.teacher, settings.evaluation, settings.cluster, settings.run.seed, None, None, {},
        settings.sampling if sampled else None,
    )  # fmt: skip
    if stage == "student":
        student = student_job(settings, dataset, 0)
        train_sampled_student(student, worker, client, dataset) if sampled else run_student(student, worker, dataset)
    elif sampled:
        train_sampled_teacher(job, worker, client, dataset)
    else:
        found = {m: map_features(graph_url, read_manifest(str(graph_url), "graph"), 0, m) for m in dataset.modalities}
        rows, present = {m: x.values() for m, x in found.items()}, {m: torch.from_numpy(x.present) for m, x in found.items()}
        shard = ItemShard(torch.arange(dataset.num_items), rows, present)
        run_teacher(job, worker, build_resident(worker, settings.teacher, train_graph(dataset), shard), dataset)


def main() -> None:
    stage, folder, *overrides = sys.argv[1:]
    settings = load_settings(None, [*overrides, f"run.dir={folder}"])
    worker = start()
    peak = memory.Peak(memory.anonymous_and_shared, 0.002)
    run(stage, settings, worker)
    print("MEASURED " + json.dumps({"beyond": (peak.highest - peak.base) * 2**20}), flush=True)


if __name__ == "__main__":
    main()
