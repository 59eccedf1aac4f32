"""Writes and reads the teacher artifact: weights, and for each revision of the prompt all vectors in shards.

`weights.safetensors` holds reduction layers, prompt and standardisation, or the whole module and the standardisation for a baseline.
`ids-user-<s>.safetensors` and `ids-item-<s>.safetensors` hold the ID tables. `rev-<r>/` holds `user-<s>.safetensors` and
`item-<s>.safetensors`, each a range of rows with the tensors `final`, `modal.<modality>` and `prompt`, and `prompt.safetensors`. Scores
from histories, which some linear teachers and an ensemble with such a component have, are a weight for each user, `history.<n>` in
the users' shards, and `similar-<n>.safetensors`. Every worker writes its share of the shards, and rank 0 writes the manifests last.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...core.artifact import ShardWriter, manifest_digest, open_artifact, publish_manifest, read_manifest
from ...core.config import OptimizerConfig, TeacherConfig, as_dict
from ...core.config.vectors import VectorsConfig
from ...core.errors import InputError
from ...core.graph import Csr
from ...core.histories import Histories, HistoryScores, Similarities
from ...core.linear.config import LinearConfig
from ...core.sides import ITEMS, SIDE_NAMES, SIDES, USERS
from ...core.storage import join
from ...core.vectors import TeacherVectors
from ..loop.selection import Selection
from ..messages import TeacherJob
from ..worker import Worker
from .output import Output, Rows, TensorRows
from .row_shards import ROWS_A_SHARD, RowShards

SIMILAR = "similar"
PROMPT_FILE = "prompt.safetensors"
Pair = tuple[Tensor, Tensor]


def vectors_by_name(vectors: TeacherVectors) -> dict[str, Pair]:
    """Returns the vectors of users and of items by name: `final`, `modal.<modality>` and, for a teacher with a prompt, `prompt`."""
    modal = {f"modal.{m}": (vectors.modal_user[m], vectors.modal_item[m]) for m in vectors.modal_item}
    has_prompt = vectors.prompt_user is not None and vectors.prompt_item is not None
    prompt = {"prompt": (vectors.prompt_user, vectors.prompt_item)} if has_prompt else {}
    return {"final": (vectors.user, vectors.item), **modal, **prompt}  # type: ignore[dict-item]


def write_teacher(
    job: TeacherJob, output: Output, selection: Selection, weights: dict[str, Tensor], num_parameters: int, further: dict | None = None
) -> None:
    """Writes teacher/ and revision 0 of its vectors; a collective call.

    Args:
        job: The teacher's job.
        output: ID vectors, standardisation and all vectors of the best epoch.
        selection: The selection of the best epoch.
        weights: The tensors of `weights.safetensors` beside the standardisation, by name.
        num_parameters: The number of trained parameters.
        further: Further facts for the manifest, JSON-able.
    """
    from safetensors.torch import save

    worker, writer = output.worker, ShardWriter(job.teacher_url)
    if worker.is_first:
        writer.clear()
    worker.barrier()
    for side in SIDES if output.ids is not None else ():
        rows = {f"ids.{SIDE_NAMES[side]}": output.ids[side]}  # type: ignore[index]
        _add_shards(writer, f"ids-{SIDE_NAMES[side]}", rows, output.counts[side], worker)
    if worker.is_first:
        tensors = {name: t.detach().cpu().contiguous() for name, t in {**weights, **output.feature_tensors}.items()}
        writer.add("weights.safetensors", save(tensors))
    files = worker.gather(writer.files)
    if worker.is_first:
        facts = {**teacher_facts(job, selection, num_parameters), **(further or {})}
        # A list, since a manifest's keys are sorted and the order of the model's modalities has to be kept.
        modalities = [[modality, dim] for modality, dim in output.dims.items()]
        publish_manifest(job.teacher_url, "teacher", {"config": as_dict(job.config), "modalities": modalities, **facts}, files)
    prompt = {name.split(".prompt.", 1)[1]: t for name, t in weights.items() if name.startswith("reduction.prompt.")}
    facts = {"lineage": job.lineage, "config": as_dict(job.config)}
    write_revision(job.teacher_url, 0, output, prompt, facts)
    worker.barrier()


def teacher_facts(job: TeacherJob, selection: Selection, num_parameters: int) -> dict:
    """Returns the facts about training in a teacher's manifest."""
    return {
        "best_epoch": selection.best_epoch,
        "best_value": selection.state()["best_value"],
        "selected_by": selection.metric,
        "num_parameters": num_parameters,
        "lineage": job.lineage,
        "seed": job.seed,
    }


def write_revision(url: str, revision: int, output: Output, prompt: dict[str, Tensor], metadata: dict) -> None:
    """Writes teacher/rev-<r>/: prompt weights and all vectors, float32, in shards of rows; a collective call.

    Args:
        url: The teacher's artifact.
        revision: The prompt's revision.
        output: All vectors of the revision.
        prompt: The prompt module's weights by name; empty for a teacher without a prompt.
        metadata: Further facts for the manifest.
    """
    from safetensors.torch import save

    worker, writer = output.worker, ShardWriter(revision_url(url, revision))
    if worker.is_first:
        writer.clear()
    worker.barrier()
    for side in SIDES:
        rows = {name: pair[side] for name, pair in output.vectors.items()}
        if side == USERS:
            rows |= {f"history.{number}": part.weights for number, part in enumerate(output.histories)}
        _add_shards(writer, SIDE_NAMES[side], rows, output.counts[side], worker)
    if worker.is_first:
        for number, part in enumerate(output.histories):
            entries, values = part.similarities.entries, part.similarities.values
            tensors = {"pointers": entries.pointers, "columns": entries.columns.int(), "values": values}
            writer.add(f"{SIMILAR}-{number:05d}.safetensors", save({name: t.contiguous() for name, t in tensors.items()}))
        writer.add(PROMPT_FILE, save({name: t.detach().cpu().contiguous() for name, t in prompt.items()}))
    files = worker.gather(writer.files)
    if worker.is_first:
        modalities = [name.removeprefix("modal.") for name in output.vectors if name.startswith("modal.")]
        facts = {"revision": revision, "modalities": modalities, "rows_a_shard": ROWS_A_SHARD, **metadata}
        if output.histories:
            facts["histories"] = len(output.histories)
        publish_manifest(revision_url(url, revision), "teacher-vectors", facts, files)
    worker.barrier()


def own_rows(count: int, worker: Worker) -> Tensor:
    """Returns which of `count` rows are in the shards that this worker writes, bool [count]."""
    own = torch.zeros(count, dtype=torch.bool)
    for ids in _own_shards(count, worker).values():
        own[ids] = True
    return own


def _own_shards(count: int, worker: Worker) -> dict[int, Tensor]:
    """Returns the rows of the shards that this worker writes, int64, by the number of the shard."""
    shards = list(enumerate(range(0, count, ROWS_A_SHARD)))[worker.rank :: worker.world_size]
    return {shard: torch.arange(first, min(first + ROWS_A_SHARD, count)) for shard, first in shards}


def _add_shards(writer: ShardWriter, name: str, rows: Mapping[str, Rows], count: int, worker: Worker) -> None:
    """Writes this worker's share of the files `name`-<s>.safetensors."""
    from safetensors.torch import save

    for shard, ids in _own_shards(count, worker).items():
        writer.add(f"{name}-{shard:05d}.safetensors", save({key: table.pull(ids).contiguous() for key, table in rows.items()}))


def output_of_vectors(worker: Worker, vectors: TeacherVectors) -> Output:
    """Returns an `Output` of vectors that every worker holds whole, without weights and ID vectors."""
    pairs = {name: (TensorRows(users.detach()), TensorRows(items.detach())) for name, (users, items) in vectors_by_name(vectors).items()}
    return Output(worker, vectors.user.shape[0], vectors.item.shape[0], {}, None, pairs, {}, {})  # type: ignore[arg-type]


def revision_url(url: str, revision: int) -> str:
    """Returns the URL of a revision's vectors."""
    return join(url, f"rev-{revision}")


def revision_digest(url: str, revision: int) -> str:
    """Returns a revision's checksum, computed from its manifest alone; the vectors are verified when they are read."""
    return manifest_digest(read_manifest(revision_url(url, revision), "teacher-vectors"))


def open_weights(url: str, cache_dir: str | None = None) -> tuple[dict[str, Tensor], list[RowShards], dict]:
    """Verifies teacher/; returns its weights by name, the ID tables of users and of items, memory-mapped, and its manifest.

    A baseline's tables are among its weights.
    """
    from safetensors.torch import load_file

    folder, manifest = open_artifact(url, "teacher", cache_dir)
    weights, tables = load_file(str(folder / "weights.safetensors")), []
    for side in SIDE_NAMES:
        files = [name for name in sorted(manifest["files"]) if name.startswith(f"ids-{side}-")]
        shards = [load_file(str(folder / name)) for name in files]
        if not shards and f"ids.{side}" in weights:  # as the full engine wrote them in earlier versions
            shards = [{f"ids.{side}": weights.pop(f"ids.{side}")}]
        if shards:
            tables.append(_table(folder, manifest, shards, f"ids.{side}"))
    return weights, tables, manifest


def read_weights(url: str, cache_dir: str | None = None) -> tuple[dict[str, Tensor], dict]:
    """Verifies teacher/; returns its weights by name, ID tables included, and its manifest."""
    weights, tables, manifest = open_weights(url, cache_dir)
    return {**weights, **{f"ids.{name}": rows.whole() for name, rows in zip(SIDE_NAMES, tables)}}, manifest


def _open_revision(url: str, revision: int, cache_dir: str | None, wanted: tuple[str, ...]) -> tuple[Path, dict]:
    """Verifies the files of a revision whose names start with one of `wanted`; returns their folder and the manifest.

    Raises:
        InputError: the revision is missing or damaged, or its manifest names another revision than its folder.
    """
    at = revision_url(url, revision)
    folder, manifest = open_artifact(at, "teacher-vectors", cache_dir, lambda name: name.startswith(wanted))
    if manifest["revision"] != revision:
        raise InputError(f"{at}: holds revision {manifest['revision']}; run train-teacher again")
    return folder, manifest


def _shards(folder: Path, manifest: dict, side: str) -> list[dict[str, Tensor]]:
    """Opens the shards of a side that the manifest lists, in order, memory-mapped."""
    from safetensors.torch import load_file

    return [load_file(str(folder / name)) for name in sorted(manifest["files"]) if name.startswith(f"{side}-")]


def _table(folder: Path, manifest: dict, shards: list[dict[str, Tensor]], name: str, side: int | None = None) -> RowShards:
    """Returns a table of an artifact by its name, of the shards of its side where both sides have one of that name."""
    of_side = name if side is None else f"{SIDE_NAMES[side]}.{name}"
    return RowShards([shard[name] for shard in shards], folder / "whole" / f"{manifest_digest(manifest)[:16]}-{of_side}.safetensors")


def modal_rows(url: str, revision: int, cache_dir: str | None = None) -> dict[str, list[RowShards]]:
    """Verifies and opens a revision's vectors M_m^U and M_m^I by modality, of users and of items, memory-mapped."""
    folder, manifest = _open_revision(url, revision, cache_dir, tuple(f"{name}-" for name in SIDE_NAMES))
    shards = [_shards(folder, manifest, name) for name in SIDE_NAMES]
    return {m: [_table(folder, manifest, shards[side], f"modal.{m}", side) for side in SIDES] for m in manifest["modalities"]}


def modal_item_rows(url: str, revision: int, cache_dir: str | None = None) -> dict[str, RowShards]:
    """Verifies and opens a revision's item vectors M_m^I by modality, memory-mapped; they are the targets of the embedding loss."""
    name = SIDE_NAMES[ITEMS]
    folder, manifest = _open_revision(url, revision, cache_dir, (f"{name}-",))
    shards = _shards(folder, manifest, name)
    return {m: _table(folder, manifest, shards, f"modal.{m}", ITEMS) for m in manifest["modalities"]}


@dataclass(frozen=True)
class FinalScores:
    """Holds what a teacher's final scores are computed from.

    Attributes:
        rows: Final vectors of users and of items, memory-mapped.
        histories: Scores from all users' train interactions, which are added to the vectors' dot products.
    """

    rows: list[RowShards]
    histories: Histories

    def to(self, device: torch.device) -> "FinalScores":
        """Returns the same on a device; on the CPU the vectors stay memory-mapped."""
        return FinalScores([rows.to(device) for rows in self.rows], tuple(part.to(device) for part in self.histories))


def final_scores(url: str, revision: int, train: Callable[[], Csr], cache_dir: str | None = None) -> FinalScores:
    """Verifies and opens a revision's final scores.

    Args:
        url: The teacher's artifact.
        revision: The prompt's revision.
        train: Returns the train items of all users; called where scores come from histories.
        cache_dir: Folder for local copies of remote artifacts.
    """
    folder, manifest = _open_revision(url, revision, cache_dir, (*(f"{name}-" for name in SIDE_NAMES), f"{SIMILAR}-"))
    sides = [_shards(folder, manifest, name) for name in SIDE_NAMES]
    rows = [_table(folder, manifest, sides[side], "final", side) for side in SIDES]
    return FinalScores(rows, _histories(folder, manifest, sides[USERS], train))


def _histories(folder: Path, manifest: dict, user_shards: list[dict[str, Tensor]], train: Callable[[], Csr] | None) -> Histories:
    """Reads the scores from histories of all users that a revision has."""
    from safetensors.torch import load_file

    found: list[HistoryScores] = []
    for number in range(manifest.get("histories", 0)):
        assert train is not None, "a teacher that scores histories is read with the train items"
        arrays = load_file(str(folder / f"{SIMILAR}-{number:05d}.safetensors"))
        items = arrays["pointers"].numel() - 1
        similarities = Similarities(Csr(arrays["pointers"], arrays["columns"], items), arrays["values"])
        weights = torch.cat([shard[f"history.{number}"] for shard in user_shards]).squeeze(1)
        histories = found[0].histories if found else train()
        found.append(HistoryScores(weights, histories, similarities))
    return tuple(found)


@dataclass(frozen=True)
class TeacherRevision:
    """Holds a revision's vectors, memory-mapped, and the weights of its prompt module."""

    revision: int
    vectors: TeacherVectors
    prompt: dict[str, Tensor]


def read_revision(url: str, revision: int, cache_dir: str | None = None, train: Callable[[], Csr] | None = None) -> TeacherRevision:
    """Verifies and opens teacher/rev-<r>/; the arguments are those of `final_scores`.

    Without `train` it is for teachers whose scores are the dot products of vectors.

    Raises:
        InputError: the revision is missing or damaged, or its manifest names another revision than its folder.
    """
    from safetensors.torch import load_file

    folder, manifest = _open_revision(url, revision, cache_dir, ("",))

    shards_of = [_shards(folder, manifest, name) for name in SIDE_NAMES]
    names = [name for name in shards_of[USERS][0] if not name.startswith("history.")]
    user, item = ({name: _table(folder, manifest, shards_of[side], name, side).whole() for name in names} for side in SIDES)
    modalities = manifest["modalities"]
    vectors = TeacherVectors(
        user["final"],
        item["final"],
        {m: user[f"modal.{m}"] for m in modalities},
        {m: item[f"modal.{m}"] for m in modalities},
        user.get("prompt"),
        item.get("prompt"),
        {},
        histories=_histories(folder, manifest, shards_of[USERS], train),
    )
    return TeacherRevision(revision, vectors, load_file(str(folder / PROMPT_FILE)))


def read_prompt(url: str, revision: int, cache_dir: str | None = None) -> dict[str, Tensor]:
    """Verifies and reads the weights of a revision's prompt module by name; its vectors are neither fetched nor verified."""
    from safetensors.torch import load_file

    folder, _ = _open_revision(url, revision, cache_dir, (PROMPT_FILE,))
    return load_file(str(folder / PROMPT_FILE))


def teacher_config_of(manifest: dict) -> TeacherConfig:
    """Returns the settings that a teacher was trained with, from its manifest."""
    values = dict(manifest["config"])
    sections: dict = {
        "train": OptimizerConfig(**values.get("train", {})),
        "linear": LinearConfig(**values.get("linear", {})),
        "vectors": VectorsConfig(**values.get("vectors", {})),
    }
    if "components" in values:
        sections["components"] = _in_order(values["components"], manifest.get("component_order"))
    return TeacherConfig(**{**values, **sections})


def _in_order(components: dict[str, dict], order: list[str] | None) -> dict[str, dict]:
    """Returns an ensemble's components in the order of its settings, which a manifest's sorted keys do not have.

    Args:
        components: Of the manifest.
        order: Their names; None in manifests of earlier versions, where a component that takes the temperature of an earlier one goes last.
    """
    if order is None:
        order = sorted(components, key=lambda name: components[name].get("temperature", 1.0) is None)
    return {name: components[name] for name in (*order, *(name for name in components if name not in order))}
