"""`promptmm inspect` from the command line: what it writes, when it measures again, and what it never reads."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from promptmm.core.storage import exists, join, read_bytes, read_json
from promptmm.graph_store.dataset import open_dataset
from promptmm.jobs.inspection.facts import CatalogFacts, catalog_facts
from promptmm.jobs.settings import load_settings
from promptmm.jobs.verbs import run_verb

SMALL = (
    "source.format=synthetic", "source.synthetic_num_users=120", "source.synthetic_num_items=80",
    "source.synthetic_interactions_per_user=12", "source.synthetic_dims={visual: 16, text: 8}",
    "cluster.executor=local", "cluster.threads=1",
)  # fmt: skip
PLOTS = ("interactions", "spectrum", "rankings", "groups")


@pytest.mark.parametrize("where", ["local", "memory"])
def test_a_catalog_is_prepared_and_inspected(command, tmp_path, where):
    run_dir = str(tmp_path / "run") if where == "local" else f"memory://{tmp_path.name}-{tmp_path.parent.name}/run"
    ended = command("inspect", *SMALL, f"run.dir={run_dir}")
    assert ended.code == 0, ended.err
    assert "[prepare] 120 users, 80 items" in ended.out
    assert re.search(r"best without training: .*, recall@20 0\.\d{4} \(± 0\.\d{4}; chance 0\.\d{4}\)", ended.out)
    assert f"page: {run_dir}/inspection.md" in ended.out
    record, text = read_json(join(run_dir, "inspection.json")), read_bytes(join(run_dir, "inspection.md")).decode()
    dataset = open_dataset(join(run_dir, "dataset"))
    assert record["made_with"] == {"dataset": dataset.digest, "seed": 0}
    assert CatalogFacts.from_json(record["facts"]) == catalog_facts(dataset)
    for modality in ("visual", "text"):
        assert f"| {modality} features, whitened, cosine |" in text
    for plot in PLOTS:
        assert f"(inspection/{plot}.png)" in text
        assert read_bytes(join(run_dir, "inspection", f"{plot}.png")).startswith(b"\x89PNG")
    assert not exists(join(run_dir, "stages", "inspect.json"))


def test_threads_are_those_of_before_when_it_ends(tmp_path):
    before = torch.get_num_threads()
    run_verb("inspect", load_settings(None, [*SMALL, f"cluster.threads={before + 1}", f"run.dir={tmp_path}"]))
    assert torch.get_num_threads() == before


def test_the_same_again_measures_nothing(command, tmp_path):
    words = (*SMALL, f"run.dir={tmp_path}")
    assert command("inspect", *words).code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "inspection.json", tmp_path / "inspection.md")}
    again = command("inspect", f"run.dir={tmp_path}")  # the folder says which source it is of
    assert again.code == 0, again.err
    assert "[inspect] already measured" in again.out
    assert "singular values" not in again.out
    assert {path: path.read_bytes() for path in before} == before
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["source"]["synthetic_num_users"] == 120
    other_seed = command("inspect", *words, "run.seed=1")
    assert "[inspect] singular values" in other_seed.out
    refused = command("inspect", *words, "source.seed=1")
    assert refused.code == 2
    assert "prepare was started here with source.seed=0 (now 1)" in refused.err


def test_another_dataset_is_measured_anew(command, tmp_path):
    words = (*SMALL, f"run.dir={tmp_path}")
    assert command("inspect", *words).code == 0
    before = read_json(f"{tmp_path}/inspection.json")
    assert command("prepare", *words, "source.seed=1", "run.redo=prepare").code == 0
    assert not any((tmp_path / name).exists() for name in ("inspection.json", "inspection.md", "inspection"))
    assert command("inspect", f"run.dir={tmp_path}").code == 0
    assert read_json(f"{tmp_path}/inspection.json")["made_with"] != before["made_with"]


def test_the_source_of_a_recipe_counts_and_not_the_folders(command, tmp_path):
    recipe = tmp_path / "other.yaml"
    recipe.write_text("source: {format: synthetic, synthetic_num_users: 90, synthetic_num_items: 80}\n")
    run = tmp_path / "run"
    assert command("inspect", *SMALL, f"run.dir={run}").code == 0
    refused = command("inspect", recipe, f"run.dir={run}")
    assert refused.code == 2
    assert "source.synthetic_num_users=120 (now 90)" in refused.err


def _words(folder: Path, *splits: str) -> tuple[str, ...]:
    """Writes a catalog whose users and items all occur in train, with some splits of it; returns the words that name it."""
    folder.mkdir()
    pairs = {
        "train": [(u, (u + k) % 12) for u in range(12) for k in range(4)],
        "validation": [(u, (u + 5) % 12) for u in range(0, 12, 2)],
        "test": [(u, (u + 7) % 12) for u in range(12)],
    }
    lines = [f"{u},{i},{split}" for split in splits for u, i in pairs[split]]
    (folder / "interactions.csv").write_text("\n".join(["user,item,split", *lines]) + "\n")
    return "source.format=parquet", f"source.path={folder}", "evaluation.cutoffs=[5]", "evaluation.select_by=recall@5"


def test_the_page_is_the_same_without_a_test_split(command, tmp_path):
    pages = []
    for splits in (("train", "validation", "test"), ("train", "validation")):
        run = tmp_path / f"run-{len(splits)}"
        ended = command("inspect", *_words(tmp_path / f"source-{len(splits)}", *splits), f"run.dir={run}")
        assert ended.code == 0, ended.err
        assert (run / "dataset" / "interactions" / "test.parquet").exists() == ("test" in splits)
        pages.append((run / "inspection.md").read_text())
    assert pages[0] == pages[1]
    assert "Recall@12" in pages[0]  # lists as long as the catalog
    assert "The catalog has none" in pages[0]


def test_without_validation_the_page_says_what_is_missing(command, tmp_path):
    ended = command("inspect", *_words(tmp_path / "source", "train", "test"), f"run.dir={tmp_path}/run")
    assert ended.code == 0, ended.err
    assert "no validation split" in ended.out
    text = (tmp_path / "run" / "inspection.md").read_text()
    assert "The catalog has no validation split" in text
    assert "rankings.png" not in text
    assert not (tmp_path / "run" / "inspection" / "rankings.png").exists()


def test_a_damaged_record_is_refused(command, tmp_path):
    words = (*SMALL, f"run.dir={tmp_path}")
    assert command("inspect", *words).code == 0
    (tmp_path / "inspection.json").write_text("{")
    refused = command("inspect", *words)
    assert refused.code == 2
    assert "inspection.json: not valid JSON" in refused.err


def test_help(command):
    ended = command("inspect", "--help")
    assert ended.code == 0
    assert "promptmm inspect [RECIPE] [key=value ...]" in ended.out
    assert "inspection.md" in ended.out
    assert "run.dir" in ended.out
    assert "  source.path" in ended.out
    assert "  cluster.threads" in ended.out
    assert "  cluster.num_workers" not in ended.out  # it has no workers
    assert "  teacher." not in ended.out
