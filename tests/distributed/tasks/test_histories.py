"""Teachers whose scores no vectors hold: what they rank, what students learn from them, and where they are refused."""

import json

import pytest
import torch
from promptmm.core.artifact import read_manifest
from promptmm.core.errors import InputError
from promptmm.core.ranking import evaluate
from promptmm.distributed.artifacts.teacher import read_revision
from promptmm.distributed.labels.labeler import Labeler
from promptmm.distributed.labels.rankings import rank_here
from promptmm.distributed.labels.teacher_scores import TeacherScores
from promptmm.distributed.tasks.own_candidates import extended
from promptmm.graph_store.dataset import masks, open_dataset
from promptmm.jobs.runs.models import trained_teacher
from promptmm.jobs.runs.worker_jobs import student_job
from promptmm.jobs.verbs import run_verb
from safetensors.torch import load_file

LOCAL = "cluster.executor=local"
ENSEMBLE = ("teacher.kind=ensemble", "teacher.hidden=[]", "teacher.train.epochs=2", "teacher.train.batch_size=64")
COMPONENTS = (
    "teacher.components={lightgcn: {dim: 6, weight: 1}, exact: {kind: polynomial, weight: 2, linear: {rank: 0, trials: 2}}, "
    "walks: {kind: rp3beta, weight: 1, linear: {rank: 0, trials: 2}}, content: {weight: 0}, "
    "spectral: {weight: 1, linear: {rank: 3, filter: neighbourhood, neighbours: 7, trials: 2}}}"
)
LISTS = (
    "student.kind=mf", "student.examples=users", "student.bpr_weight=0", "student.l2=0", "student.train.epochs=3",
    "distill.score_weight=1", "distill.pair_weight=0", "distill.list_weight=0", "distill.embedding_weight=0",
)  # fmt: skip


def dense_scores(url, dataset):
    """All scores of an artifact, float64 [num_users, num_items]."""
    vectors = read_revision(str(url), 0, None, lambda: dataset.csr("train")).vectors
    scores = vectors.user.double() @ vectors.item.double().T
    return sum((part.rows(torch.arange(dataset.num_users)).double() for part in vectors.histories), scores)


def standard(scores):
    return (scores - scores.mean(1, keepdim=True)) / scores.std(1, correction=0, keepdim=True)


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def metrics(scores, dataset, split):
    identity = torch.eye(dataset.num_items, dtype=torch.float64)
    return evaluate(scores, identity, *masks(dataset, split), [20])["recall@20"]


@pytest.fixture
def trained(fork_run, tiny_settings):
    """Trains a teacher in this process; returns folder, dataset and the settings' words."""

    def train(*words, name="run"):
        folder = fork_run(name)
        run_verb("train-teacher", tiny_settings(folder, *words))
        return folder, open_dataset(f"{folder}/dataset")

    return train


RANK_ZERO = ["teacher.linear.rank=0"]
BESIDE_VECTORS = ["teacher.linear.rank=4", "teacher.linear.filter=neighbourhood", "teacher.linear.neighbours=9"]


@pytest.mark.parametrize(
    ("kind", "own"), [("item_knn", RANK_ZERO), ("rp3beta", RANK_ZERO), ("polynomial", RANK_ZERO), ("spectral", BESIDE_VECTORS)]
)
def test_a_teacher_of_similarities_says_what_it_ranks(trained, kind, own, capfd):
    words = (f"teacher.kind={kind}", "teacher.hidden=[]", *own, "teacher.linear.trials=4")
    folder, dataset = trained(LOCAL, *words, *LISTS)
    scores, manifest = dense_scores(folder / "teacher", dataset), read_manifest(str(folder / "teacher"), "teacher")
    torch.testing.assert_close(scores.std(1, correction=0), torch.ones(dataset.num_users, dtype=torch.float64), atol=1e-4, rtol=0)
    assert manifest["best_value"] == pytest.approx(metrics(scores, dataset, "validation"), abs=1e-6)
    rank = 4 if own is BESIDE_VECTORS else 0
    assert (manifest["linear"]["settings"]["rank"], manifest["linear"]["trials"]) == (rank, 4)
    files = load_file(str(folder / "teacher/rev-0/similar-00000.safetensors"))
    assert files["values"].numel() > 0
    assert manifest["num_parameters"] == files["values"].numel() + rank * (dataset.num_users + dataset.num_items)
    said, beside = capfd.readouterr().out, "vectors of 4 columns and " if rank else "; "
    assert f"{beside}{files['values'].numel():,} similarities of items" in said
    assert f"; {'vectors and ' if rank else ''}similarities of {dataset.num_items:,} items written" in said


def test_an_ensemble_adds_them_to_vectors_and_a_student_learns_all_of_it(trained, tiny_settings):
    words = (LOCAL, *ENSEMBLE, COMPONENTS, *LISTS, "student.warm_start=true", "distill.num_student=3", "student.dim=12")
    folder, dataset = trained(*words)
    scores = dense_scores(folder / "teacher", dataset)
    parts = {name: dense_scores(folder / f"components/{name}/teacher", dataset) for name in ("lightgcn", "exact", "walks", "spectral")}
    expected = sum(
        weight * standard(parts[name]) for name, weight in (("lightgcn", 0.2), ("exact", 0.4), ("walks", 0.2), ("spectral", 0.2))
    )
    torch.testing.assert_close(scores - scores.mean(1, keepdim=True), expected, atol=2e-4, rtol=0)

    settings = tiny_settings(folder, *words)
    job = student_job(settings, dataset, 0).label_job()
    rank_here(job.rankings, dataset)
    labels = Labeler(job, dataset).labels(0, 0)
    wanted = scores[labels.users[:, None], labels.candidates]
    torch.testing.assert_close(labels.scores.double(), wanted - wanted[:, :1], atol=2e-4, rtol=0)

    drawn = torch.randint(dataset.num_items, (len(labels), 3), generator=torch.Generator().manual_seed(1))
    of_teacher = TeacherScores(f"{settings.dir}/teacher", 0, lambda: dataset.csr("train"))
    longer = extended(labels, drawn, of_teacher)
    wanted = scores[labels.users[:, None], longer.candidates]
    torch.testing.assert_close(longer.scores.double(), wanted - wanted[:, :1], atol=2e-4, rtol=0)

    for verb in ("label", "distill", "evaluate"):
        run_verb(verb, settings)
    results = results_of(folder)
    for split in ("validation", "test"):
        assert results["teacher"][split]["recall@20"] == pytest.approx(metrics(scores, dataset, split), abs=1e-6)
    assert results["student"]["validation"]["recall@20"] > 0.9 * results["teacher"]["validation"]["recall@20"]


def test_a_warm_start_is_the_closest_table(trained, tiny_settings):
    words = (LOCAL, *ENSEMBLE, COMPONENTS, *LISTS, "student.warm_start=true", "student.dim=12", "student.train.epochs=0")
    folder, dataset = trained(*words)
    for verb in ("label", "distill"):
        run_verb(verb, tiny_settings(folder, *words))
    left, values, right = torch.linalg.svd(dense_scores(folder / "teacher", dataset), full_matrices=False)
    best = (left[:, :12] * values[:12]) @ right[:12]
    found = load_file(str(folder / "training/student/model/vectors.safetensors"))
    torch.testing.assert_close((found["user"] @ found["item"].T).double(), best, atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("student.warm_start=true", "cluster.engine=sampled"), "warm_start=true with a teacher that scores histories"),
        (("student.kind=mlp", "cluster.engine=full"), "student.kind=mlp reads the teacher's vectors"),
    ],
)
def test_a_student_that_cannot_start_from_it_is_refused(trained, tiny_settings, words, said):
    folder, _ = trained(LOCAL, *ENSEMBLE, COMPONENTS, *LISTS)
    with pytest.raises(InputError, match=said):
        run_verb("distill", tiny_settings(folder, LOCAL, *LISTS, "labels.mode=streamed", *words))


@pytest.mark.parametrize(
    "teacher",
    [
        ("teacher.kind=rp3beta", "teacher.linear.rank=0"),
        ("teacher.kind=ensemble", "teacher.components={spectral: {}, walks: {kind: rp3beta, linear: {rank: 0}}}"),
        ("teacher.kind=spectral", "teacher.linear.filter=neighbourhood", "teacher.linear.neighbours=5"),
        ("teacher.kind=ensemble", "teacher.components={ease: {}, spectral: {linear: {filter: neighbourhood, neighbours: 5}}}"),
    ],
)
def test_such_a_student_is_refused_before_anything_is_trained(tmp_path, tiny_settings, teacher):
    with pytest.raises(InputError, match=r"student\.kind=mlp reads the teacher's vectors"):
        tiny_settings(tmp_path, *teacher, "teacher.hidden=[]", *LISTS, "student.kind=mlp")


def test_what_serving_a_teacher_takes(trained):
    """Values, columns and pointers of the similarities, the users' weights and their histories."""
    words = ("teacher.kind=rp3beta", "teacher.hidden=[]", "teacher.linear.rank=0", "teacher.linear.trials=1")
    folder, dataset = trained(LOCAL, *words, *LISTS)
    entries = load_file(str(folder / "teacher/rev-0/similar-00000.safetensors"))["values"].numel()
    train = dataset.manifest["num_interactions"]["train"]
    expected = 8 * entries + 8 * (dataset.num_items + 1) + 4 * dataset.num_users + 4 * train
    assert trained_teacher(str(folder), dataset, None).facts.serving_bytes == expected


def test_a_student_of_the_sampled_engine_learns_from_its_labels(trained, tiny_settings):
    folder, dataset = trained(LOCAL, *ENSEMBLE, COMPONENTS, *LISTS)
    sampled = ("cluster.engine=sampled", "sampling.fan_outs=[3]", "student.train.epochs=8", "student.train.learning_rate=0.05")
    words = (LOCAL, *LISTS, "labels.mode=streamed", "student.warm_start=false", *sampled)
    run_verb("distill", tiny_settings(folder, *words))
    history = [json.loads(line) for line in (folder / "training/student/metrics.jsonl").read_text().splitlines()]
    assert history[-1]["validation/recall@20"] > 1.1 * metrics(
        torch.rand(dataset.num_users, dataset.num_items, dtype=torch.float64), dataset, "validation"
    )
    assert history[-1]["loss/score"] < 0.9 * history[0]["loss/score"]


def test_an_ensemble_of_another_run_keeps_its_histories(trained):
    """An artifact with vectors and histories is one component, in its own units."""
    other, _ = trained(LOCAL, *ENSEMBLE, COMPONENTS, *LISTS, name="other")
    taken = f"teacher.components={{mine: {{artifact: {other}/teacher, weight: 1}}, spectral: {{weight: 1, linear: {{trials: 1}}}}}}"
    folder, dataset = trained(LOCAL, *ENSEMBLE, taken, *LISTS)
    scores = dense_scores(folder / "teacher", dataset)
    expected = 0.5 * standard(dense_scores(other / "teacher", dataset)) + 0.5 * standard(
        dense_scores(folder / "components/spectral/teacher", dataset)
    )
    torch.testing.assert_close(scores - scores.mean(1, keepdim=True), expected, atol=2e-4, rtol=0)


@pytest.mark.slow  # the stages of other teachers on Ray are compared in the default run
def test_executors_write_the_same_bits(ray_cluster, fork_run, tiny_settings):
    """Teacher, streamed labels, student and evaluation of a teacher that scores histories."""
    found = {}
    for executor in ("local", "ray"):
        folder = fork_run(executor)
        words = [*ENSEMBLE, COMPONENTS, *LISTS, "student.warm_start=true", "labels.mode=streamed", "cluster.threads=1"]
        for verb in ("train-teacher", "distill", "evaluate"):
            run_verb(verb, tiny_settings(folder, *words, f"cluster.executor={executor}"))
        paths = [*(folder / "teacher").rglob("*.safetensors"), *(folder / "training/student/model").glob("*.safetensors")]
        tensors = {f"{path.relative_to(folder)} {name}": t for path in paths for name, t in load_file(str(path)).items()}
        found[executor] = tensors, results_of(folder)
    (one, first), (two, second) = found["local"], found["ray"]
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    for model in ("teacher", "student"):
        assert first[model]["test"] == pytest.approx(second[model]["test"], abs=1e-9)
