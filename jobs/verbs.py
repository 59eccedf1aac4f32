"""The verbs: each reads what earlier ones left in `run.dir`, does its work once, and leaves its result there."""

from collections.abc import Callable
from typing import Any

from ..core.config import SamplingConfig, as_dict
from ..core.errors import InputError
from ..core.serving import Recommendation, load_student, write_bundle
from ..core.storage import (
    exists,
    has_artifact,
    join,
    manifest_digest,
    open_artifact,
    read_bytes,
    read_json,
    read_manifest,
    write_bytes,
    write_json,
)
from ..distributed.evaluation import evaluate_vectors
from ..distributed.labels import labels_url, materialise
from ..distributed.launch import fit, ray_session, start_progress
from ..distributed.prompt_tuning import tune_prompt_loop
from ..distributed.student_training import StudentJob, train_student_loop
from ..distributed.teacher_artifact import revision_digest, revision_url
from ..distributed.teacher_training import TeacherJob, train_teacher_loop
from ..distributed.training import stage_url
from ..graph_store.dataset import Dataset, open_dataset
from ..graph_store.dataset_writer import write_dataset
from ..graph_store.dgl.partition import partition as write_partition
from ..graph_store.graph_artifact import describe_part
from ..graph_store.partition_memory import describe_memory, memory_of
from ..graph_store.sources.formats import load_catalog, memory_bound
from ..graph_store.sources.synthetic_writer import write_synthetic
from . import planning, report
from .models import TrainedModel, trained_student, trained_teacher
from .settings import SECTIONS, Settings
from .stages import forget_from, read_record, require_done, run_stage


def _dataset(settings: Settings) -> Dataset:
    return open_dataset(join(settings.dir, "dataset"), settings.cluster.cache_dir)


def need_shared_storage(settings: Settings, verb: str) -> None:
    """Raises InputError where the run's folder is the memory of this process."""
    if settings.dir.startswith("memory://"):
        raise InputError(
            f"run.dir={settings.dir}: {verb} runs in several processes, which share no memory; use a folder or an object store"
        )


def generate(settings: Settings) -> None:
    """Writes the synthetic catalog that source.synthetic_* describes to source.path, as Parquet, at any size."""
    config = settings.source
    if config.path is None or config.format != "synthetic":
        raise InputError("generate needs source.format=synthetic, and the catalog's folder in source.path")
    facts = write_synthetic(config, config.path)
    counts = f"{facts['num_users']:,} users, {facts['num_items']:,} items, {facts['num_interactions']:,} interactions"
    print(f"[generate] {counts} in {config.path}", flush=True)
    files = ", ".join(f"{modality}: {file}" for modality, file in facts["modalities"].items())
    print(f"[generate] next: promptmm prepare source.format=parquet source.path={config.path} source.modalities='{{{files}}}'", flush=True)


def prepare(settings: Settings) -> None:
    """The raw catalog -> dataset/."""

    source = {name: value for name, value in as_dict(settings.source).items() if name != "memory_mib"}

    def make() -> dict:
        print(f"[prepare] {memory_bound(settings.source)}", flush=True)
        manifest = write_dataset(join(settings.dir, "dataset"), load_catalog(settings.source), source, settings.source.memory_mib)
        settings.evaluation.check_catalog(manifest["num_items"])
        return {k: v for k, v in manifest.items() if k not in ("files", "source")}

    record = run_stage(settings, "prepare", {"source": source}, make)
    facts = record["result"]
    counts = ", ".join(f"{split} {n:,}" for split, n in facts["num_interactions"].items())
    print(f"[prepare] {facts['num_users']:,} users, {facts['num_items']:,} items, interactions: {counts}", flush=True)
    for modality, info in facts["modalities"].items():
        print(f"[prepare] {modality}: {info['dim']}-d {info['dtype']}, {info['missing_rows']:,} items without a row", flush=True)


def partition(settings: Settings) -> None:
    """dataset/ -> graph/."""
    require_done(settings.dir, "prepare", "partition")
    dataset = _dataset(settings)
    made_with = {"graph": as_dict(settings.graph), "dataset": dataset.digest}

    def make() -> dict:
        print(f"[partition] {describe_memory(memory_of(dataset, settings.graph))}", flush=True)
        facts = write_partition(dataset, join(settings.dir, "graph"), settings.graph)
        return {"num_parts": facts["num_parts"], "part_items": facts["part_items"], "parts": facts["parts"]}

    record = run_stage(settings, "partition", made_with, make)
    for part, facts in enumerate(record["result"]["parts"]):
        print(f"[partition] part {part}: {describe_part(facts)}", flush=True)


def plan(settings: Settings) -> None:
    """Predicts what the run needs and refuses what cannot fit; written to plan.json."""
    require_done(settings.dir, "prepare", "plan")
    dataset = _dataset(settings)
    settings.evaluation.check_catalog(dataset.num_items)
    choice, available = planning.engine_of(settings, dataset, "plan"), planning.available_memory(settings)
    url = join(settings.dir, "plan.json")
    made = read_json(url) if exists(url) else {}
    if not planning.still_holds(made, settings, dataset, available, choice):
        made = planning.make_plan(settings, dataset, available, choice)
        write_json(url, made)
    print(planning.describe_plan(made), flush=True)


def _with_engine(settings: Settings, dataset: Dataset, verb: str) -> Settings:
    """The settings with the run's engine in place of `cluster.engine=auto`, which it says."""
    if settings.cluster.engine != "auto":
        return settings
    choice = planning.engine_of(settings, dataset, verb)
    print(f"[{verb}] engine: {choice.engine} ({choice.reason})", flush=True)
    return planning.with_engine(settings, choice)


def _sampling(settings: Settings) -> SamplingConfig | None:
    """The blocks' settings where the engine samples, else None."""
    return settings.sampling if settings.cluster.engine == "sampled" else None


def _engine(settings: Settings) -> dict:
    """What of the engine decides a result."""
    sampling = _sampling(settings)
    if sampling is None:
        return {"engine": "full"}
    excluded = {"exclude_seed_edges": True} if sampling.exclude_seed_edges else {}
    return {"engine": "sampled", "fan_outs": sampling.fan_outs, **excluded}


def _teacher_inputs(settings: Settings, dataset: Dataset) -> dict:
    return {
        "teacher": as_dict(settings.teacher),
        "engine": _engine(settings),
        "select_by": settings.evaluation.select_by if dataset.has_split("validation") else None,
        "run": {"seed": settings.run.seed},
        "dataset": dataset.digest,
    }


def check_teachable(settings: Settings, dataset: Dataset) -> None:
    """Raises InputError where there is nothing to train a teacher from."""
    if settings.teacher.reads_features and not dataset.modalities:
        raise InputError(
            f"{settings.dir}: the dataset has no modality, and teacher.kind={settings.teacher.kind} learns from at least one; name feature "
            "files in source.modalities, set teacher.kind=lightgcn or mf, or train a student alone with distill.use_teacher=false"
        )


def train_teacher(settings: Settings) -> None:
    """graph/ -> teacher/ with revision 0 of its vectors."""
    need_shared_storage(settings, "train-teacher")
    require_done(settings.dir, "partition", "train-teacher")
    dataset = _dataset(settings)
    check_teachable(settings, dataset)
    if manifest_dataset(settings) != dataset.digest:
        raise InputError(f"{settings.dir}/graph was made from another dataset/; add run.redo=partition")
    settings = _with_engine(settings, dataset, "train-teacher")
    made_with = _teacher_inputs(settings, dataset)

    def make() -> dict:
        from ..graph_store.dgl.service import start_service

        with ray_session(settings.cluster):
            import ray

            service, lines = start_service(join(settings.dir, "graph"), settings.cluster.cache_dir), start_progress()
            try:
                job = TeacherJob(
                    settings.dir, settings.teacher, settings.evaluation, settings.cluster, settings.run.seed, service, lines,
                    {"dataset": dataset.digest}, _sampling(settings),
                )  # fmt: skip
                fit("train-teacher", train_teacher_loop, {"job": job}, settings.cluster, settings.dir, lines)
            finally:
                ray.get(service.stop.remote(), timeout=60)
        manifest = read_manifest(join(settings.dir, "teacher"), "teacher")
        return {"best_epoch": manifest["best_epoch"], "num_parameters": manifest["num_parameters"]}

    run_stage(settings, "train-teacher", made_with, make)


def manifest_dataset(settings: Settings) -> str:
    """The dataset that graph/ was made from."""
    return read_manifest(join(settings.dir, "graph"), "graph")["dataset"]


def has_teacher(settings: Settings, dataset: Dataset) -> bool:
    """Whether the student of this run is distilled: asked for, and there is what its teacher learns from, or a teacher already."""
    can_learn = bool(dataset.modalities) or not settings.teacher.reads_features
    return settings.distill.use_teacher and (can_learn or has_artifact(join(settings.dir, "teacher")))


def check_teacher(settings: Settings, kind: str, by_modality: bool) -> None:
    """Whether a student can learn from a kind of teacher what the settings ask for.

    Args:
        by_modality: Whether it has vectors for each modality.

    Raises:
        InputError: it has no prompt to tune, or no vectors by modality for a loss to learn from.
    """
    distill = settings.distill
    if kind != "promptmm" and (distill.regime == "inline" or distill.rounds > 1):
        raise InputError(
            f"the teacher is a {kind}, which has no prompt to tune with distill.regime={distill.regime}, distill.rounds={distill.rounds}; "
            "set distill.regime=rounds and distill.rounds=1, or train a teacher with teacher.kind=promptmm"
        )
    if not by_modality and (distill.list_weight or distill.embedding_weight):
        raise InputError(
            f"the teacher is a {kind}, which has no vectors by modality for distill.list_weight={distill.list_weight} and "
            f"distill.embedding_weight={distill.embedding_weight} to learn from; set distill.list_weight=0 and distill.embedding_weight=0"
        )


def _check_trained_teacher(settings: Settings) -> None:
    """`check_teacher` of the teacher that the run has, whatever the settings of this command say of it."""
    manifest = read_manifest(join(settings.dir, "teacher"), "teacher")
    check_teacher(settings, manifest["config"].get("kind", "promptmm"), bool(manifest["modalities"]))


def student_job(settings: Settings, dataset: Dataset, revision: int, **more: Any) -> StudentJob:
    """The student's job at a revision of the labels; `more` overrides its fields."""
    import dataclasses

    distill = dataclasses.replace(settings.distill, use_teacher=has_teacher(settings, dataset))
    values: dict[str, Any] = {"stop_epoch": settings.student.train.epochs, "is_last": True, "service": None, "lines": None}
    values |= {"sampling": _sampling(settings), **more}
    return StudentJob(
        settings.dir, settings.student, distill, settings.labels, settings.evaluation, settings.cluster, settings.run.seed,
        dataset.manifest["num_interactions"]["train"], revision, **values,
    )  # fmt: skip


def _label_inputs(settings: Settings, dataset: Dataset) -> dict:
    distill = as_dict(settings.distill)
    return {
        "labels": as_dict(settings.labels),
        "distill": {k: distill[k] for k in ("num_uniform", "num_top", "top_depth")},
        "student": {"train": {"batch_size": settings.student.train.batch_size}},
        "run": {"seed": settings.run.seed},
        "teacher": revision_digest(join(settings.dir, "teacher"), 0),
    }


def _write_labels(settings: Settings, dataset: Dataset, revision: int) -> dict:
    job = student_job(settings, dataset, revision).label_job()
    lineage = {"teacher": revision_digest(job.teacher_url, revision)}
    facts = materialise(job, settings.dir, settings.labels.epochs, settings.cluster, lineage)
    print(
        f"[label] revision {revision}: {facts['rows']:,} examples in {facts['epochs']} epochs, {facts['bytes'] / 2**20:.1f} MiB", flush=True
    )
    return {"bytes": facts["bytes"], "rows": facts["rows"]}


def label(settings: Settings) -> None:
    """teacher/ -> labels/rev-0/ for materialised labels; streamed and inline labels are made while the student trains."""
    need_shared_storage(settings, "label")
    require_done(settings.dir, "train-teacher", "label")
    _check_trained_teacher(settings)
    dataset = _dataset(settings)
    if not _is_materialised(settings):
        print(f"[label] nothing to write: labels are made while the student trains ({_label_way(settings)})", flush=True)
        return

    def make() -> dict:
        with ray_session(settings.cluster):
            return _write_labels(settings, dataset, 0)

    run_stage(settings, "label", _label_inputs(settings, dataset), make)


def _is_materialised(settings: Settings) -> bool:
    return settings.distill.regime == "rounds" and settings.labels.mode == "materialised"


def _label_way(settings: Settings) -> str:
    return "distill.regime=inline" if settings.distill.regime == "inline" else "labels.mode=streamed"


def distill(settings: Settings) -> None:
    """labels/ (or a resident teacher, or neither) -> the trained student, in one or several rounds."""
    need_shared_storage(settings, "distill")
    require_done(settings.dir, "prepare", "distill")
    dataset = _dataset(settings)
    taught = has_teacher(settings, dataset)
    if not taught and (settings.student.warm_start or settings.student.kind == "mlp"):
        raise InputError("student.warm_start and student.kind=mlp start from a teacher, and the dataset has no modality to train one from")
    if settings.distill.use_teacher and not taught:
        print("[distill] the dataset has no modality, so there is no teacher: the student trains alone", flush=True)
    settings, lineage = _with_engine(settings, dataset, "distill"), {"dataset": dataset.digest}
    if taught:
        require_done(settings.dir, "train-teacher", "distill")
        _check_trained_teacher(settings)
        if _is_materialised(settings):
            require_done(settings.dir, "label", "distill")
            lineage["labels"] = manifest_digest(read_manifest(labels_url(settings.dir, 0), "labels"))
        lineage["teacher"] = revision_digest(join(settings.dir, "teacher"), 0)
    if _sampling(settings) is not None:
        require_done(settings.dir, "partition", "distill")
    made_with = {
        "engine": _engine(settings),
        "student": as_dict(settings.student),
        "distill": as_dict(settings.distill) if taught else {"use_teacher": settings.distill.use_teacher},
        "labels": as_dict(settings.labels) if taught else None,
        "select_by": settings.evaluation.select_by if dataset.has_split("validation") else None,
        "run": {"seed": settings.run.seed},
        **lineage,
    }

    def make() -> dict:
        with ray_session(settings.cluster):
            _run_rounds(settings, dataset, lineage)
        manifest = read_manifest(join(stage_url(settings.dir, "student"), "model"), "student-model")
        return {"best_epoch": manifest["best_epoch"], "num_parameters": manifest["num_parameters"]}

    run_stage(settings, "distill", made_with, make)


def _run_rounds(settings: Settings, dataset: Dataset, lineage: dict) -> None:
    """The rounds on Ray Train workers."""
    import ray

    from ..graph_store.dgl.service import start_service

    taught = has_teacher(settings, dataset)
    needs_graph = _sampling(settings) is not None or (taught and (settings.distill.regime == "inline" or settings.distill.rounds > 1))
    lines = start_progress()
    service = start_service(join(settings.dir, "graph"), settings.cluster.cache_dir) if needs_graph else None

    def on_workers(name: str, loop: Callable[[dict], None]) -> Callable[[StudentJob], None]:
        return lambda job: fit(name, loop, {"job": job}, settings.cluster, settings.dir, lines)

    try:
        run_rounds(
            settings, dataset, on_workers("distill", train_student_loop), on_workers("tune-prompt", tune_prompt_loop),
            lambda revision: _write_labels(settings, dataset, revision), service=service, lines=lines, lineage=lineage,
        )  # fmt: skip
    finally:
        if service is not None:
            ray.get(service.stop.remote(), timeout=60)


def run_rounds(
    settings: Settings,
    dataset: Dataset,
    train: Callable[[StudentJob], None],
    tune: Callable[[StudentJob], None],
    make_labels: Callable[[int], Any],
    **more: Any,
) -> None:
    """Round r: labels at revision r feed the student; then the prompt is tuned against it. No tuning follows the last round.

    Args:
        settings, dataset: Of the run.
        train, tune: Do a round's training and tuning.
        make_labels: Materialises the labels of a revision.
        more: Further fields of the students' jobs.
    """
    taught, epochs = has_teacher(settings, dataset), settings.student.train.epochs
    rounds = settings.distill.rounds if taught else 1
    for number in range(_rounds_done(settings, rounds), rounds):
        if taught and _is_materialised(settings) and not _has_labels(settings, number):
            make_labels(number)
        last = number + 1 == rounds
        job = student_job(settings, dataset, number, stop_epoch=epochs * (number + 1) // rounds, is_last=last, **more)
        train(job)
        if not last:
            tune(job)


def _rounds_done(settings: Settings, rounds: int) -> int:
    """Rounds whose tuning has left its revision; they are not repeated when a run resumes."""
    done = 0
    while done + 1 < rounds and has_artifact(revision_url(join(settings.dir, "teacher"), done + 1)):
        done += 1
    return done


def _has_labels(settings: Settings, revision: int) -> bool:
    return has_artifact(labels_url(settings.dir, revision))


def evaluate(settings: Settings) -> None:
    """Validation and test metrics of teacher and student, sizes, ratios, table and plots -> results.json, report.md, plots/."""
    need_shared_storage(settings, "evaluate")
    require_done(settings.dir, "distill", "evaluate")
    dataset = _dataset(settings)
    settings.evaluation.check_catalog(dataset.num_items)
    student_manifest = read_manifest(join(stage_url(settings.dir, "student"), "model"), "student-model")
    taught = student_manifest["distillation"]["use_teacher"]
    made_with = {"evaluation": as_dict(settings.evaluation), "student": manifest_digest(student_manifest), "dataset": dataset.digest}

    def make() -> dict:
        with ray_session(settings.cluster):
            teacher = _metrics(settings, dataset, trained_teacher(settings.dir, dataset, settings.cluster.cache_dir)) if taught else None
            return {"teacher": teacher, "student": _metrics(settings, dataset, trained_student(settings.dir, settings.cluster.cache_dir))}

    results = run_stage(settings, "evaluate", made_with, make)["result"]
    write_results(settings, dataset, results)


def _metrics(settings: Settings, dataset: Dataset, model: TrainedModel) -> dict:
    found = {}
    for split in ("validation", "test"):
        if dataset.has_split(split):
            url = join(settings.dir, "dataset")
            found[split] = evaluate_vectors(url, model.users, model.items, split, settings.evaluation, settings.cluster)
    return {**found, **model.facts}


def write_results(settings: Settings, dataset: Dataset, evaluated: dict) -> dict:
    """Writes results.json, report.md and plots/; returns the results."""
    from .settings import VERBS

    teacher, student = evaluated["teacher"], dict(evaluated["student"])
    student["parameter_ratio"] = student["num_parameters"] / teacher["num_parameters"] if teacher else None
    student["serving_ratio"] = student["serving_bytes"] / teacher["serving_bytes"] if teacher else None
    records = {verb: read_record(settings.dir, verb) for verb in VERBS}
    keys = ("num_users", "num_items", "num_interactions", "users_without_train", "items_without_train", "modalities")
    results = {
        "teacher": teacher,
        "student": student,
        "timings": {verb: round(record["seconds"], 2) for verb, record in records.items() if record and record["done"]},
        "dataset": {key: dataset.manifest[key] for key in keys},
        "seed": read_manifest(join(stage_url(settings.dir, "student"), "model"), "student-model")["seed"],
    }
    write_json(join(settings.dir, "results.json"), results)
    shown = report.table(results, settings.evaluation.cutoffs)
    plots = report.write_plots(settings.dir, settings.evaluation.select_by)
    pictures = "\n".join(f"![{url.rsplit('/', 1)[-1]}](plots/{url.rsplit('/', 1)[-1]})" for url in plots)
    write_bytes(join(settings.dir, "report.md"), f"# {settings.dir}\n\n{shown}\n\n{pictures}\n".encode())
    return results


def export(settings: Settings) -> None:
    """The trained student with ids, seen items, metrics and lineage -> student/, the serving bundle."""
    require_done(settings.dir, "evaluate", "export")
    from safetensors.torch import load_file

    dataset = _dataset(settings)
    folder, manifest = open_artifact(join(stage_url(settings.dir, "student"), "model"), "student-model", settings.cluster.cache_dir)
    results = read_json(join(settings.dir, "results.json"))
    made_with = {"student": manifest_digest(manifest), "dataset": dataset.digest}

    def make() -> dict:
        vectors = load_file(str(folder / "vectors.safetensors"))
        metadata = {
            "metrics": {split: results["student"].get(split) for split in ("validation", "test")},
            "config": manifest["config"],
            "distillation": manifest["distillation"],
            "seed": manifest["seed"],
            "lineage": {**manifest["lineage"], "student_model": manifest_digest(manifest)},
        }
        url = join(settings.dir, "student")
        weights = load_file(str(folder / "weights.safetensors"))
        write_bundle(url, vectors["user"], vectors["item"], dataset.user_ids(), dataset.item_ids(), dataset.csr("train"), weights, metadata)
        return {"url": url}

    run_stage(settings, "export", made_with, make)


def recommend(settings: Settings) -> None:
    """student/ -> top-k lists, printed or written to Parquet."""
    config = settings.recommend
    student = load_student(join(settings.dir, "student"), settings.cluster.cache_dir)
    if config.users is not None:
        users = config.users
    elif config.output is not None:
        users = student.user_ids
    else:
        users = [next((u for u, degree in zip(student.user_ids, student.num_seen().tolist()) if degree), student.user_ids[0])]
    lists = student.recommend(users, config.k, config.exclude_seen)
    if config.output is not None:
        _write_lists(config.output, lists)
        print(f"[recommend] {len(lists):,} lists of {config.k} written to {config.output}", flush=True)
        return
    for found in lists:
        print(f"top {config.k} for user {found.user}:", flush=True)
        for place, (item, score) in enumerate(zip(found.items, found.scores), 1):
            print(f"  {place:3d}. {item}  ({score:.4f})", flush=True)


def _write_lists(url: str, lists: list[Recommendation]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    columns = {"user": [r.user for r in lists], "items": [r.items for r in lists], "scores": [r.scores for r in lists]}
    pq.write_table(pa.table(columns), sink)
    write_bytes(url, sink.getvalue().to_pybytes())


def pipeline(settings: Settings) -> None:
    """All verbs; a verb that is already done is not done again."""
    need_shared_storage(settings, "pipeline")
    if settings.distill.use_teacher:
        check_teacher(settings, settings.teacher.kind, settings.teacher.reads_features)
    prepare(settings)
    dataset = _dataset(settings)
    settings.evaluation.check_catalog(dataset.num_items)
    if settings.recommend.k > dataset.num_items:
        raise InputError(f"recommend.k={settings.recommend.k} is larger than the catalog of {dataset.num_items} items")
    unknown = sorted(set(settings.recommend.users or []) - set(dataset.user_ids()))
    if unknown:
        raise InputError(f"recommend.users: the catalog has no users {', '.join(unknown[:20])}")
    taught = has_teacher(settings, dataset)
    if taught or planning.engine_of(settings, dataset, "distill").engine == "sampled":
        partition(settings)
    plan(settings)
    with ray_session(settings.cluster):
        if taught:
            train_teacher(settings)
            label(settings)
        distill(settings)
        evaluate(settings)
    export(settings)
    results = write_results(settings, dataset, read_record(settings.dir, "evaluate")["result"])  # type: ignore[index]
    print("\n" + report.table(results, settings.evaluation.cutoffs), flush=True)
    for name, model in (("teacher", results["teacher"]), ("student", results["student"])):
        if model is not None and not dataset.has_split("validation"):
            print(f"{name}: no validation split, so no selection: epoch {model['best_epoch']}, the last one", flush=True)
    print("seconds: " + ", ".join(f"{verb} {seconds:.1f}" for verb, seconds in results["timings"].items()), flush=True)
    recommend(settings)
    here = settings.dir
    print(f"\nresults: {here}/results.json, {here}/report.md; plots: {here}/plots; bundle to serve: {here}/student", flush=True)


VERB_FUNCTIONS = {
    "generate": generate,
    "prepare": prepare,
    "partition": partition,
    "plan": plan,
    "train-teacher": train_teacher,
    "label": label,
    "distill": distill,
    "evaluate": evaluate,
    "export": export,
    "recommend": recommend,
    "pipeline": pipeline,
}


def run_verb(verb: str, settings: Settings) -> None:
    """Saves the resolved configuration, forgets what `run.redo` names, and runs the verb; `generate` is not part of a run."""
    if verb == "generate":
        generate(settings)
        return
    if settings.run.redo not in (None, verb) and verb != "pipeline":
        raise InputError(f"run.redo={settings.run.redo}: {verb} does not do that verb again; use it with {settings.run.redo} or pipeline")
    forget_from(settings)
    warn_of_passing_folder(settings)
    url = join(settings.dir, "config.yaml")
    before = read_bytes(url) if exists(url) else None
    write_bytes(url, _resolved(verb, settings, before))
    try:
        VERB_FUNCTIONS[verb](settings)
    except InputError:  # refused: the folder still holds what the earlier configuration made
        if before is not None:
            write_bytes(url, before)
        raise


def warn_of_passing_folder(settings: Settings) -> None:
    """Says where what the run makes will not stay."""
    if "/working_dir_files/" in settings.dir:
        print(
            f"warning: run.dir={settings.dir} lies in Ray's copy of the working directory, which Ray removes in time; set run.dir to an "
            "absolute folder or a URL that every host reaches",
            flush=True,
        )


def _resolved(verb: str, settings: Settings, before: bytes | None) -> bytes:
    """The configuration as YAML. A later verb replaces the sections it reads: `recommend` must not forget how the teacher was trained."""
    import yaml

    values = as_dict(settings)
    values["run"]["redo"] = None  # said once, not a property of the run
    if before is not None:
        values = {**values, **yaml.safe_load(before), **{section: values[section] for section in SECTIONS[verb]}}
    return yaml.safe_dump(values, sort_keys=False).encode()
