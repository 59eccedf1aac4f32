"""The graph/ artifact: the train graph in parts, in DGL's partition format, plus each part's feature rows as flat files.

Layout of graph/ (all integers little-endian, indices are the dataset's):
manifest.json                        counts, modalities, and of every part: users, items, edges (its own nodes' in-edges), feature bytes
                                     (of its items' present rows), and the share of its edges whose other end another part owns
promptmm.json, part<P>/*.dgl         as DGL reads them. A part holds its users, then its items, each ascending by dataset index, then
                                     the neighbours that other parts own. Its edges are the in-edges of its own nodes in CSC order, a
                                     row's neighbours ascending by dataset index: what is drawn from a row does not depend on the cut.
                                     Node data: `degree` and `orig`, the dataset index. Edge ids in the CSC are implicit.
part<P>/orig.i64                     dataset index of every node of the part, other parts' neighbours included
part<P>/degrees.i32                  train interactions of every node that the part owns
part<P>/weights.f32                  Ã's entry of every edge, in CSC order
part<P>/features/<modality>.rows     feature rows, row-major, in the order of the part's own items: float16 or float32 as in the dataset,
                                     or int8 (`graph.features`) with a float32 scale for each row in <modality>.scale (feature_rows.py);
                                     <modality>.present one byte a row
nodes/{user,item}.i64                DGL's (homogeneous) node id of every dataset index
examples/pointers.i64, items.i32     train items of every user, by dataset index: what examples and negatives are drawn from

Written by dgl/partition.py; who owns what is decided in assignment.py.
"""

import re
from collections.abc import Callable, Collection

GRAPH_NAME = "promptmm"
EDGE, BACK_EDGE = "interacts", "interacted_by"  # a user's in-edges are of type BACK_EDGE, an item's of type EDGE


def files_of(parts: Collection[int]) -> Callable[[str], bool]:
    """Makes the test of which files a host needs that serves, or owns rows of, some parts: theirs, and what belongs to no part."""

    def wanted(name: str) -> bool:
        match = re.match(r"part(\d+)/", name)
        return match is None or int(match[1]) in parts

    return wanted


def describe_part(facts: dict) -> str:
    """Describes a part in one line.

    Args:
        facts: The part's entry in the manifest's `parts`.
    """
    return (
        f"{facts['users']:,} users, {facts['items']:,} items, {facts['edges']:,} edges ({facts['cut_edges']:.1%} cut), "
        f"{facts['feature_bytes'] / 2**20:,.1f} MiB of features"
    )
