"""The plan against stages that run: memory of a worker beside its libraries, within 25 %."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from promptmm.core.vectors import TeacherVectors
from promptmm.distributed.artifacts.teacher import output_of_vectors, write_revision
from promptmm.distributed.execution.local import LocalExecutor, start_worker
from promptmm.distributed.labels.rankings import rank_here
from promptmm.graph_store.catalog import Catalog
from promptmm.graph_store.config import GraphConfig
from promptmm.graph_store.dataset import open_dataset
from promptmm.graph_store.dataset_writer import write_dataset
from promptmm.graph_store.dgl.partition import partition
from promptmm.jobs.planning.plan import make_plan
from promptmm.jobs.planning.units import MIB
from promptmm.jobs.runs.worker_jobs import student_job, teacher_job
from promptmm.jobs.settings import load_settings
from promptmm.jobs.verbs import run_verb

NUM_USERS, NUM_ITEMS, DEGREE = 30_000, 20_000, 10
DIMS = {"visual": 64, "textual": 32}
COMMON = ["teacher.dim=64", "student.dim=64", "teacher.train.epochs=1", "student.train.epochs=1", "evaluation.cutoffs=[20]"]
TUNED = ["cluster.engine=sampled", "distill.rounds=2", "distill.tuning_steps=3", "labels.mode=streamed"]
SERVED = {"teacher": "train-teacher", "student": "distill", "tune": "tune-prompt"}
SECONDS = 300


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    """A catalog whose tables are of 12 MiB each, cut into one part, with a teacher of random vectors."""
    folder, rng = tmp_path_factory.mktemp("plan") / "run", np.random.default_rng(0)
    items = (rng.random(NUM_USERS * DEGREE) ** 1.7 * NUM_ITEMS).astype(np.int64)
    pairs = np.repeat(np.arange(NUM_USERS), DEGREE) * NUM_ITEMS + items
    held_out = np.arange(0, NUM_USERS, 10) * NUM_ITEMS + rng.integers(NUM_ITEMS, size=NUM_USERS // 10)
    splits = {name: np.divmod(keys, NUM_ITEMS) for name, keys in (("train", np.setdiff1d(pairs, held_out)), ("validation", held_out))}
    features = {m: (rng.standard_normal((NUM_ITEMS, dim)).astype(np.float16), np.ones(NUM_ITEMS, bool)) for m, dim in DIMS.items()}
    write_dataset(f"{folder}/dataset", Catalog([*map(str, range(NUM_USERS))], [*map(str, range(NUM_ITEMS))], splits, features), {})
    partition(open_dataset(f"{folder}/dataset"), f"{folder}/graph", GraphConfig())
    users, items = torch.randn(NUM_USERS, 64), torch.randn(NUM_ITEMS, 64)
    vectors = TeacherVectors(users, items, dict.fromkeys(DIMS, users), dict.fromkeys(DIMS, items), users, items, {})
    output = output_of_vectors(start_worker(torch.get_num_threads()), vectors)
    write_revision(f"{folder}/teacher", 0, output, {"none": torch.zeros(1)}, {})
    return folder


def train_for_tuning(folder: Path, settings, dataset) -> None:
    """A teacher after one step of the full engine, and a student at its start, in the run's folder."""
    train = dataclasses.replace(settings.teacher.train, batch_size=NUM_USERS * DEGREE)
    here = dataclasses.replace(settings, run=dataclasses.replace(settings.run, dir=str(folder)))
    whole = teacher_job(dataclasses.replace(here, teacher=dataclasses.replace(here.teacher, train=train)), dataset)
    whole = dataclasses.replace(whole, cluster=dataclasses.replace(whole.cluster, engine="full"))
    for job in (whole, student_job(here, dataset, 0, stop_epoch=0, is_last=False)):
        LocalExecutor(here.cluster, str(folder), dataset).run(job)


def write_labels(folder: Path, settings, dataset) -> None:
    """One epoch of labels in the run's folder."""
    job = student_job(settings, dataset, 0).label_job()
    LocalExecutor(settings.cluster, str(folder), dataset).label(job, str(folder), 1, {})


@pytest.mark.whole
@pytest.mark.parametrize(
    ("stage", "role", "overrides"),
    [
        ("teacher", "teacher worker", ["cluster.engine=full", "teacher.train.batch_size=60000"]),
        ("teacher", "teacher worker", ["cluster.engine=sampled", "teacher.train.batch_size=4000"]),
        pytest.param(
            "teacher",
            "teacher worker",
            ["cluster.engine=full", "teacher.hidden=[256]", "cluster.zero_stage=2"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "teacher", "teacher worker", ["cluster.engine=sampled", "sampling.fan_outs=[3]", "teacher.dim=128"], marks=pytest.mark.slow
        ),
        pytest.param("student", "student worker", ["cluster.engine=full", "distill.use_teacher=false"], marks=pytest.mark.slow),
        pytest.param("student", "student worker", ["cluster.engine=sampled", "distill.use_teacher=false"], marks=pytest.mark.slow),
        pytest.param("student", "student worker", ["cluster.engine=full", "distill.num_uniform=10"], marks=pytest.mark.slow),
        pytest.param("student", "student worker", ["cluster.engine=full", "student.kind=mf", "student.dim=128"], marks=pytest.mark.slow),
        pytest.param("student", "student worker", ["cluster.engine=full", "student.kind=gcn", "student.layers=3"], marks=pytest.mark.slow),
        pytest.param("student", "student worker", ["cluster.engine=full", "student.kind=mlp", "student.dim=128"], marks=pytest.mark.slow),
        pytest.param("tune", "prompt tuner", [*TUNED, "student.train.batch_size=4000"], marks=pytest.mark.slow),
        pytest.param("tune", "prompt tuner", [*TUNED, "sampling.fan_outs=[3]", "distill.num_uniform=5"], marks=pytest.mark.slow),
        pytest.param("label", "labeler", ["labels.block_rows=300000"], marks=pytest.mark.slow),
        pytest.param("label", "labeler", ["labels.block_rows=200000", "distill.num_top=10"], marks=pytest.mark.slow),
        pytest.param("label", "labeler", ["labels.by=users", "labels.pool=1500"], marks=pytest.mark.slow),
        pytest.param("rank", "ranker", ["distill.num_top=10", "distill.top_depth=2000"], marks=pytest.mark.slow),
    ],
    ids=[
        "full teacher",
        "sampled teacher",
        "full teacher's towers",
        "sampled teacher, few neighbours",
        "student",
        "sampled student",
        "taught student",
        "taught student without layers",
        "taught student with maps",
        "taught student of perceptrons",
        "sampled prompt tuner",
        "sampled prompt tuner, few neighbours",
        "labeler",
        "labeler of ranked items",
        "labeler by user",
        "ranker",
    ],
)
def test_memory_is_within_a_quarter(run_dir, tmp_path, stage, role, overrides):
    """Standalone, the graph server's tables are in the worker's process too."""
    settings, dataset = load_settings(None, [*COMMON, *overrides, f"run.dir={run_dir}"]), open_dataset(f"{run_dir}/dataset")
    plan = make_plan(settings, dataset, None)
    wanted = sum(plan.roles[role].parts.values())
    servers = [need for name, need in plan.roles.items() if name in (f"graph server ({SERVED.get(stage)})",)]
    if servers:
        wanted += servers[0].parts["tables"]
    own = tmp_path / "run"  # what a stage writes is its own
    own.mkdir()
    taught = stage in ("rank", "label") or (stage == "student" and settings.distill.use_teacher)
    for name in ("dataset", "graph"):
        (own / name).symlink_to(run_dir / name)
    if taught:
        shutil.copytree(run_dir / "teacher", own / "teacher")
    labels = student_job(settings, dataset, 0).label_job()
    if stage == "label" and labels.rankings is not None:
        rank_here(dataclasses.replace(labels.rankings, teacher_url=f"{own}/teacher"), dataset)
    if stage == "tune":
        train_for_tuning(own, settings, dataset)
    if taught and stage == "student":
        write_labels(own, settings, dataset)
    check(role, wanted, measured(stage, own, [*COMMON, *overrides]))


def measured(stage: str, folder: Path, overrides: list[str]) -> float:
    """Bytes that a stage takes in a process of its own, beyond its libraries."""
    script = Path(__file__).with_name("stage_memory.py")
    path = [str(script.parents[3] / "benchmarks"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    words = [sys.executable, str(script), stage, str(folder), *overrides]
    done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.split("MEASURED ")[1])["beyond"]


def check(role: str, wanted: float, found: float) -> None:
    print(f"{role}: planned {wanted / MIB:.0f} MiB, measured {found / MIB:.0f} MiB")
    assert found >= 200 * MIB
    assert abs(wanted - found) <= 0.25 * found


@pytest.mark.whole
@pytest.mark.slow
@pytest.mark.parametrize("dims", [{"visual": 2048}, {"visual": 200, "textual": 150, "acoustic": 250}], ids=["wide", "narrow"])
def test_memory_of_an_export_is_within_a_quarter(tmp_path, dims):
    """A catalog whose features take most: the map of new items is fitted on them."""
    own, source, rng = tmp_path / "run", tmp_path / "source", np.random.default_rng(0)
    pairs = np.unique(np.arange(NUM_USERS).repeat(DEGREE) * NUM_ITEMS + rng.integers(NUM_ITEMS, size=NUM_USERS * DEGREE))
    users, items = np.divmod(pairs, NUM_ITEMS)
    source.mkdir()
    pq.write_table(pa.table({"user": users, "item": items}), source / "interactions.parquet")
    for modality, dim in dims.items():
        rows = pa.FixedSizeListArray.from_arrays(pa.array(rng.standard_normal(NUM_ITEMS * dim).astype(np.float32)), dim)
        pq.write_table(pa.table({"item": np.arange(NUM_ITEMS), "vector": rows}), source / f"{modality}.parquet")
    overrides = [*COMMON, "distill.use_teacher=false", "cluster.executor=local", "cluster.engine=full"]
    modalities = json.dumps({modality: f"{modality}.parquet" for modality in dims})
    settings = load_settings(
        None, [*overrides, f"run.dir={own}", "source.format=parquet", f"source.path={source}", f"source.modalities={modalities}"]
    )
    for verb in ("prepare", "partition", "distill", "evaluate"):
        run_verb(verb, settings)
    wanted = sum(make_plan(settings, open_dataset(f"{own}/dataset"), None).roles["exporter"].parts.values())
    check("exporter", wanted, measured("export", own, overrides))


def test_the_plan_knows_the_chunks_of_exact_inference():
    from promptmm.distributed.engines.sampled import inference
    from promptmm.jobs.planning import sampled_needs

    assert (sampled_needs.CHUNK_ROWS, sampled_needs.CHUNK_EDGES) == (inference.CHUNK_ROWS, inference.CHUNK_EDGES)
