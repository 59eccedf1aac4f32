"""The synthetic catalog as files: what `promptmm generate` writes."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ...core.artifact import write_artifact
from ..catalog import CHUNK_ROWS
from ..config import SourceConfig
from .synthetic import USER_BLOCK, Synthetic, blocks, raw_ids, raw_names


def write_synthetic(config: SourceConfig, url: str) -> dict:
    """Generates a catalog, and writes it as a raw one: the Parquet files that `source.format=parquet` reads, a block at a time.

    Args:
        config: `synthetic_*` and `seed` describe the catalog.
        url: The folder; a catalog that is there is replaced.

    Returns:
        Counts of users, items and interactions, and the file of every modality.
    """
    made = Synthetic(config)
    files = {modality: f"{modality}.parquet" for modality in made.dims}
    facts: dict = {"num_users": made.num_users, "num_items": made.num_items, "num_interactions": 0, "modalities": files}
    with write_artifact(url, "catalog", facts) as folder:
        schema = pa.schema({"user": pa.string(), "item": pa.string()})
        with pq.ParquetWriter(folder / "interactions.parquet", schema, compression="zstd") as writer:
            for users, items in made.interactions():
                facts["num_interactions"] += len(users)
                writer.write_table(pa.table({"user": raw_names("u", users), "item": raw_names("i", items)}, schema))
        with pq.ParquetWriter(folder / "items.parquet", pa.schema({"item": pa.string()})) as writer:
            for start, stop in blocks(made.num_items, USER_BLOCK * 16):
                writer.write_table(pa.table({"item": raw_ids("i", start, stop)}))
        for modality, dim in made.dims.items():
            _write_features(made, folder / files[modality], modality, dim)
    return facts


def _write_features(made: Synthetic, path: Path, modality: str, dim: int) -> None:
    schema = pa.schema({"item": pa.string(), "vector": pa.list_(pa.float16(), dim)})
    with pq.ParquetWriter(path, schema, use_dictionary=False) as writer:
        for (start, stop), (rows, present) in zip(blocks(made.num_items, CHUNK_ROWS), made.features(modality)):
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), dim, mask=pa.array(~present))
            writer.write_table(pa.table({"item": raw_ids("i", start, stop), "vector": vectors}, schema))
