"""The package's modules: importable without DGL and Ray but for graph_store.dgl, and free of circles."""

import graphlib
import subprocess
import sys

import grimp


def test_no_circles_also_through_functions_and_type_checking():
    graph = grimp.build_graph("promptmm.graph_store")
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    list(graphlib.TopologicalSorter(imports).static_order())  # raises CycleError


def test_datasets_are_read_without_dgl_and_ray(tmp_path):
    script = """
import sys
sys.modules["dgl"] = sys.modules["ray"] = None  # importing them fails
from promptmm.graph_store.config import SourceConfig
from promptmm.graph_store.dataset import open_dataset
from promptmm.graph_store.dataset_writer import write_dataset
from promptmm.graph_store.sources.formats import load_catalog
import promptmm.graph_store.backend
write_dataset(sys.argv[1], load_catalog(SourceConfig(synthetic_num_users=30, synthetic_num_items=20)), {})
assert open_dataset(sys.argv[1]).num_users == 30
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "dataset")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
