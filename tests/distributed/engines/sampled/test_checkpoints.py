# Checkpoints: two workers through Ray, one in this process

CHECKPOINTED = TeacherConfig(
    dim=6, hidden=[10], dropout=0.3, train=OptimizerConfig(epochs=5, batch_size=16, learning_rate=0.01, checkpoint_every=1)
)


def job_of(folder, workers, epochs, service=None, lines=None):
    """The teacher's job in a run folder, up to an epoch."""
    import dataclasses

    from promptmm.core.config import EvaluationConfig
    from promptmm.distributed.config import ClusterConfig
    from promptmm.distributed.teacher_training import TeacherJob

    config = dataclasses.replace(CHECKPOINTED, train=dataclasses.replace(CHECKPOINTED.train, epochs=epochs))
    cluster = ClusterConfig(num_workers=workers)
    return TeacherJob(str(folder), config, EvaluationConfig(cutoffs=[5, 20]), cluster, 3, service, lines, {}, SamplingConfig(fan_outs=[2]))


def new_run(dataset, folder):
    folder.mkdir()
    (folder / "dataset").symlink_to(dataset.folder)
    return folder


@pytest.fixture(scope="module")
def one_worker(client, dataset, worker):
    """Trains in a run folder up to an epoch."""
    from promptmm.distributed.sampled_training import train_sampled_teacher

    return lambda folder, epochs: train_sampled_teacher(job_of(folder, 1, epochs), worker, renamed(client), dataset)


@pytest.fixture(scope="module")
def two_workers(ray_cluster, client):
    """The same with two workers on one host."""
    from promptmm.distributed.launch import fit, start_progress
    from promptmm.distributed.teacher_training import train_teacher_loop
    from promptmm.graph_store.dgl.service import start_service

    def train(folder, epochs):
        service, lines = start_service(str(client.folder)), start_progress()
        job = job_of(folder, 2, epochs, service, lines)
        try:
            fit("two", train_teacher_loop, {"job": job}, job.cluster, str(folder), lines)
        finally:
            ray_cluster.get(service.stop.remote(), timeout=60)

    return train


def rows_of(folder):
    return [json.loads(line) for line in (folder / "training" / "teacher" / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def undisturbed(one_worker, dataset, tmp_path_factory):
    """Losses of five epochs of one worker."""
    folder = new_run(dataset, tmp_path_factory.mktemp("undisturbed") / "run")
    one_worker(folder, 5)
    return [row["loss"] for row in rows_of(folder)]


@pytest.fixture(scope="module")
def begun_by_two(two_workers, dataset, tmp_path_factory):
    """A run of two epochs of two workers, with a checkpoint after each."""
    folder = new_run(dataset, tmp_path_factory.mktemp("two") / "run")
    two_workers(folder, 2)
    return folder


@pytest.fixture(scope="module")
def continued_by_one(begun_by_two, one_worker, tmp_path_factory):
    """One worker goes on up to the fourth epoch; a shard of the newest checkpoint was cut short."""
    folder = tmp_path_factory.mktemp("one") / "run"
    shutil.copytree(begun_by_two, folder, symlinks=True)
    shutil.rmtree(folder / "teacher")
    shards = sorted((folder / "training" / "teacher" / "checkpoints" / "epoch-000002").glob("user-*.safetensors"))
    assert len(shards) == 2  # one of each worker
    shards[1].write_bytes(shards[1].read_bytes()[:-8])
    with contextlib.redirect_stdout(io.StringIO()) as said:
        one_worker(folder, 4)
    return folder, said.getvalue()


def test_a_damaged_shard_falls_back_to_the_checkpoint_before(continued_by_one):
    _, said = continued_by_one
    assert "checkpoint left out" in said
    assert "user-" in said
    assert "resuming after epoch 0" in said


def test_checkpoints_of_two_workers_resume_on_one(continued_by_one, undisturbed):
    """Losses to 2e-5: sums in another order are the only difference."""
    folder, _ = continued_by_one
    assert [row["loss"] for row in rows_of(folder)] == pytest.approx(undisturbed[:4], rel=2e-5)


@pytest.mark.slow
def test_checkpoints_of_one_worker_resume_on_two(continued_by_one, two_workers, undisturbed, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(continued_by_one[0], folder, symlinks=True)
    shutil.rmtree(folder / "teacher")
    two_workers(folder, 5)
    rows = rows_of(folder)
    assert [row["loss"] for row in rows] == pytest.approx(undisturbed, rel=2e-5)
    assert [row["mib_sent"] > 0 for row in rows] == [True, False, False, False, True]  # one worker sends nothing


def test_the_plan_knows_what_a_step_sends(begun_by_two, dataset):
    """Ids, rows and gradients, within 25 % of what the first worker sent."""
    from promptmm.jobs.planning.plan import make_plan
    from promptmm.jobs.settings import load_settings

    words = ["cluster.engine=sampled", "cluster.num_workers=2", "sampling.fan_outs=[2]", "teacher.dim=6", "teacher.hidden=[10]"]
    plan = make_plan(load_settings(None, [*words, "teacher.train.batch_size=16"]), dataset, None)
    num_steps = -(-dataset.manifest["num_interactions"]["train"] // 16)
    for row in rows_of(begun_by_two):
        assert plan.steps["teacher"].exchanged_bytes == pytest.approx(row["mib_sent"] * 2**20 / num_steps, rel=0.25)
