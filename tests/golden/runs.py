"""Short runs of the command line whose training curves are pinned in curves.json.

A change that is meant to leave training as it is must leave every number of these curves as it is, to the last digit. The runs cover both
engines, every kind of teacher and student that ships, both regimes of prompt-tuning and both ways of labels.

All but two were recorded before training was rewritten as one epoch loop with tasks, engines and executors. Recorded again after it:
"full, mlp", whose student used to read memory-mapped vectors and now holds a copy (the last digits of a matrix product depend on how its
inputs are aligned in memory); and the student of "two workers, full", whose workers used to take the embedding loss over all distinct items
of a step each, and now over a share each, as the sampled engine's do: the same sum in another order. Losses moved by less than 2e-7 of the
total in both.

"demo" and "tiktok" were recorded again when scores of candidate lists became a row times a matrix, which is three times as fast and adds in
another order: losses moved by at most 1e-6 of themselves. The vectors of the small runs are too short for the order to differ.

The students of "full, features beside", "sampled, features beside" and "tiktok" were recorded again when scores by modality became
cosines where the teacher's loss compares cosines (`teacher.feature_temperature`), and the weight of lists in the recipe became a tenth;
teachers did not move.

The students whose lists have ranked candidates were recorded again when labels took the scores of these from the rankings. A score is the
same product of two vectors, in a matrix of another width: some of the float16 scores in labels moved by their last digit, and terms of the
loss by at most 1e-5 of themselves. Teachers did not move, and neither did students without ranked candidates.
"""

import json
from pathlib import Path

LISTS = "distill.list_weight=0.01"  # as the recipe had it when the run was recorded
CURVES = Path(__file__).with_name("curves.json")
TINY = [
    "source.synthetic_num_users=150",
    "source.synthetic_num_items=90",
    "source.synthetic_interactions_per_user=12",
    "teacher.dim=8",
    "teacher.hidden=[12]",
    "student.dim=8",
    "teacher.train.batch_size=256",
    "student.train.batch_size=256",
    "teacher.train.epochs=3",
    "student.train.epochs=4",
    "teacher.train.learning_rate=0.01",
    "student.train.learning_rate=0.01",
    "distill.num_uniform=4",
    "distill.num_top=2",
    "distill.list_weight=0.5",
    "distill.embedding_weight=0.5",
    "labels.epochs=3",
    "labels.block_rows=512",
    "evaluation.cutoffs=[5, 20]",
    "cluster.threads=1",
]
CONCAT = [
    "teacher.fusion=concat", "teacher.modality_layers=0", "teacher.whiten=true", "teacher.leave_one_out=true",
    "teacher.feature_temperature=0.2", "teacher.user_balance=0.5", "student.kind=mf", "student.warm_start=true", "student.user_balance=0.5",
]  # fmt: skip
SAMPLED = ["cluster.engine=sampled", "sampling.fan_outs=[4, 3]"]
BY_SCORES = ["teacher.hidden=[]", "distill.list_weight=0", "distill.embedding_weight=0"]
ALL_TERMS = ["distill.decoder=true", "student.layers=1"]
SMALL_RUNS: dict[str, list[str]] = {
    "full": [],
    "full, features beside": CONCAT,
    "full, decoders": ALL_TERMS,
    "full, inline": ["distill.regime=inline"],
    "full, two rounds": ["distill.rounds=2", "distill.tuning_steps=3"],
    "full, streamed": ["labels.mode=streamed"],
    "full, alone": ["distill.use_teacher=false"],
    "full, gcn": ["student.kind=gcn"],
    "full, mlp": ["student.kind=mlp"],
    "full, without validation": ["source.train_ratio=0.9", "source.validation_ratio=0"],
    "mf": ["teacher.kind=mf", *BY_SCORES],
    "lightgcn": ["teacher.kind=lightgcn", *BY_SCORES],
    "vbpr": ["teacher.kind=vbpr", "teacher.hidden=[]"],
    "lattice": ["teacher.kind=lattice", "teacher.hidden=[]"],
    "sampled": SAMPLED,
    "sampled, features beside": [*SAMPLED, *CONCAT],
    "sampled, micro-batches, gcn": [*SAMPLED, "cluster.micro_batches=2", "student.kind=gcn"],
    "sampled, alone": [*SAMPLED, "distill.use_teacher=false", "student.kind=mf"],
}
TWO_WORKERS: dict[str, list[str]] = {
    "two workers, full": ["cluster.num_workers=2", "cluster.zero_stage=1"],
    "two workers, sampled": [*SAMPLED, "cluster.num_workers=2"],
}
LARGE_RUNS: dict[str, list[str]] = {
    "demo": ["demo", "cluster.threads=1"],
    "tiktok": ["tiktok", "cluster.threads=1", "teacher.train.epochs=3", "student.train.epochs=3", "labels.epochs=2", LISTS],
}
LOCAL = "cluster.executor=local"
LEFT_OUT = ("seconds", "waiting", "mib_sent")  # what the clock decides, or the traffic


def train(run_dir: Path, *words: str, until: str = "distill") -> None:
    """Runs the verbs of the command line that training needs, in a new folder.

    Args:
        run_dir: The run's folder.
        words: A recipe and settings.
        until: The last verb.
    """
    from promptmm.jobs.cli import main

    taught = "distill.use_teacher=false" not in words
    verbs = ("prepare", "partition", *(("train-teacher", "label") if taught else ()), "distill")
    for verb in verbs[: verbs.index(until) + 1]:
        code = main([verb, *words, f"run.dir={run_dir}"])
        assert code == 0, f"{verb}: exit code {code}"


def read_curves(run_dir: Path) -> dict[str, list[dict[str, float]]]:
    """The rows of both stages' metrics.jsonl, as far as training decides them."""
    found = {}
    for stage in ("teacher", "student"):
        path = run_dir / "training" / stage / "metrics.jsonl"
        if path.exists():
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            found[stage] = [{name: value for name, value in row.items() if name not in LEFT_OUT} for row in rows]
    return found


def kernels() -> dict[str, str]:
    """What decides the last digits beside the code: torch's version, the vector instructions that it uses here, and the processor.

    Libraries choose among kernels by the processor's model, too: two with the same vector instructions may sum in different orders.
    """
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    processor = " ".join(facts.get(name, "?") for name in ("vendor_id", "cpu family", "model"))
    return {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability(), "processor": processor}
