"""The teacher artifact: weights, and for each revision of the prompt all vectors in shards.

Layout: `weights.safetensors` (ID tables, reduction layers, prompt, standardisation; the sampled engine writes the ID tables beside it, as
`ids-user-<s>.safetensors` and `ids-item-<s>.safetensors`), and `rev-<r>/` with `user-<s>.safetensors` and
`item-<s>.safetensors`, each a range of rows with the tensors `final`, `modal.<modality>` and `prompt`, plus `prompt.safetensors`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.config import TeacherConfig, as_dict
from ..core.errors import InputError
from ..core.sides import SIDE_NAMES
from ..core.storage import join, manifest_digest, open_artifact, publish_manifest, read_manifest, write_artifact
from ..core.teacher import TeacherVectors

ROWS_A_SHARD = 1 << 18


def _weight_facts(modalities: dict[str, int], config: TeacherConfig, metadata: dict) -> dict:
    # A list, since a manifest's keys are sorted and the order of modalities is the model's.
    return {"config": as_dict(config), "modalities": [[m, dim] for m, dim in modalities.items()], **metadata}


def write_weights(url: str, tensors: dict[str, Tensor], modalities: dict[str, int], config: TeacherConfig, metadata: dict) -> None:
    """Writes teacher/: the trained weights, with `modalities` (d_m by name, in the model's order) and `metadata` in the manifest."""
    from safetensors.torch import save_file

    with write_artifact(url, "teacher", _weight_facts(modalities, config, metadata)) as folder:
        save_file({k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}, str(folder / "weights.safetensors"))


def publish_weights(url: str, modalities: dict[str, int], config: TeacherConfig, metadata: dict, files: dict[str, dict]) -> None:
    """Completes teacher/ from what several workers wrote: `weights.safetensors` and the ID tables in shards of rows."""
    publish_manifest(url, "teacher", _weight_facts(modalities, config, metadata), files)


def read_weights(url: str, cache_dir: str | None = None) -> tuple[dict[str, Tensor], dict]:
    """The weights and the manifest of teacher/."""
    from safetensors.torch import load_file

    folder, manifest = open_artifact(url, "teacher", cache_dir)
    weights = load_file(str(folder / "weights.safetensors"))
    for side in SIDE_NAMES:
        shards = [load_file(str(folder / name))[f"ids.{side}"] for name in sorted(manifest["files"]) if name.startswith(f"ids-{side}-")]
        if shards:
            weights[f"ids.{side}"] = torch.cat(shards)
    return weights, manifest


def revision_url(url: str, revision: int) -> str:
    """Where a revision's vectors are."""
    return join(url, f"rev-{revision}")


def revision_digest(url: str, revision: int) -> str:
    """A revision's checksum, from its manifest alone: who reads the vectors verifies them."""
    return manifest_digest(read_manifest(revision_url(url, revision), "teacher-vectors"))


def write_revision(url: str, revision: int, vectors: TeacherVectors, prompt: dict[str, Tensor], metadata: dict) -> None:
    """Writes teacher/rev-<r>/: prompt weights and all vectors, float32, in shards of rows."""
    from safetensors.torch import save_file

    sides = {
        "user": {"final": vectors.user, **{f"modal.{m}": x for m, x in vectors.modal_user.items()}},
        "item": {"final": vectors.item, **{f"modal.{m}": x for m, x in vectors.modal_item.items()}},
    }
    if vectors.prompt_user is not None and vectors.prompt_item is not None:
        sides["user"]["prompt"], sides["item"]["prompt"] = vectors.prompt_user, vectors.prompt_item
    facts = _revision_facts(revision, list(vectors.modal_item), metadata)
    with write_artifact(revision_url(url, revision), "teacher-vectors", facts) as folder:
        save_file({k: t.detach().cpu().contiguous() for k, t in prompt.items()}, str(folder / "prompt.safetensors"))
        for side, tensors in sides.items():
            for shard, first in enumerate(range(0, tensors["final"].shape[0], ROWS_A_SHARD)):
                rows = {k: t[first : first + ROWS_A_SHARD].detach().float().cpu().contiguous().clone() for k, t in tensors.items()}
                save_file(rows, str(folder / f"{side}-{shard:05d}.safetensors"))


def _revision_facts(revision: int, modalities: list[str], metadata: dict) -> dict:
    return {"revision": revision, "modalities": modalities, "rows_a_shard": ROWS_A_SHARD, **metadata}


def publish_revision(url: str, revision: int, modalities: list[str], metadata: dict, files: dict[str, dict]) -> None:
    """Completes teacher/rev-<r>/ from the shards that several workers wrote."""
    publish_manifest(revision_url(url, revision), "teacher-vectors", _revision_facts(revision, modalities, metadata), files)


@dataclass(frozen=True)
class RowShards:
    """A table in shards of `ROWS_A_SHARD` rows, memory-mapped: float32 [n, dim] rows by index.

    Attributes:
        shards: The shards, in order.
    """

    shards: list[Tensor]

    @property
    def dim(self) -> int:
        """Columns."""
        return self.shards[0].shape[1]

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Rows by index, int64 [n]."""
        if len(self.shards) == 1:
            return self.shards[0][rows]
        out, which = torch.empty(rows.numel(), self.dim), rows // ROWS_A_SHARD
        for number in torch.unique(which).tolist():
            chosen = (which == number).nonzero().squeeze(1)
            out[chosen] = self.shards[number][rows[chosen] - number * ROWS_A_SHARD]
        return out


def modal_item_rows(url: str, revision: int, cache_dir: str | None = None) -> dict[str, RowShards]:
    """M_m^I of a revision by modality, memory-mapped: the targets of the embedding loss."""
    from safetensors.torch import load_file

    folder, manifest = open_artifact(revision_url(url, revision), "teacher-vectors", cache_dir, lambda name: name.startswith("item-"))
    shards = [load_file(str(path)) for path in sorted(folder.glob("item-*.safetensors"))]
    return {m: RowShards([shard[f"modal.{m}"] for shard in shards]) for m in manifest["modalities"]}


def final_rows(url: str, revision: int, cache_dir: str | None = None) -> list[RowShards]:
    """The final vectors of a revision's users and items, memory-mapped: what a warm start reads."""
    from safetensors.torch import load_file

    folder, _ = open_artifact(revision_url(url, revision), "teacher-vectors", cache_dir)
    sides = (sorted(folder.glob(f"{side}-*.safetensors")) for side in SIDE_NAMES)
    return [RowShards([load_file(str(path))["final"] for path in paths]) for paths in sides]


@dataclass(frozen=True)
class TeacherRevision:
    """A revision's vectors, read-only and memory-mapped where there is one shard, with its prompt weights."""

    revision: int
    vectors: TeacherVectors
    prompt: dict[str, Tensor]


def read_revision(url: str, revision: int, cache_dir: str | None = None) -> TeacherRevision:
    """Verifies and opens teacher/rev-<r>/.

    Raises:
        InputError: it is missing, damaged, or of another revision than its name says.
    """
    from safetensors.torch import load_file

    folder, manifest = open_artifact(revision_url(url, revision), "teacher-vectors", cache_dir)
    if manifest["revision"] != revision:
        raise InputError(f"{revision_url(url, revision)}: holds revision {manifest['revision']}; run train-teacher again")

    def side(name: str) -> dict[str, Tensor]:
        shards = [load_file(str(path)) for path in sorted(folder.glob(f"{name}-*.safetensors"))]
        return {k: shards[0][k] if len(shards) == 1 else torch.cat([s[k] for s in shards]) for k in shards[0]}

    user, item = side("user"), side("item")
    modalities = manifest["modalities"]
    vectors = TeacherVectors(
        user["final"],
        item["final"],
        {m: user[f"modal.{m}"] for m in modalities},
        {m: item[f"modal.{m}"] for m in modalities},
        user.get("prompt"),
        item.get("prompt"),
        {},
    )
    return TeacherRevision(revision, vectors, load_file(str(folder / "prompt.safetensors")))
