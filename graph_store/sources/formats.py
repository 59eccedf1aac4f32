"""Reads a raw catalog of any format.

parquet    interactions.parquet or .csv (user, item, optionally timestamp and split), optionally items.parquet or .csv
           (item); features: a Parquet file of item and vector for every modality
mmrec      one .inter file: tab-separated userID, itemID, x_label (0 train, 1 validation, 2 test); .npy features
promptmm   train.json, val.json, test.json ({user: [items]}), optionally train_mat (a pickled matrix, read for its
           shape); .npy features
diffmm     trnMat.pkl, valMat.pkl, tstMat.pkl (pickled user-item matrices); .npy features
lightgcn   train.txt, test.txt, optionally valid.txt: a line a user: user item item ...
synthetic  generated, see `synthetic.py`
own        `module:function`, see `kinds.py`

Of those that ship all but parquet and synthetic number users and items from 0: row i of a .npy file is item i.
Messages count rows from 0, without the header, and lines from 1.
"""

from ..catalog import Catalog
from ..config import SourceConfig
from .kinds import source_of

PREPARE_MIB = 512  # of prepare beside source.memory_mib and the ids: the interpreter, its libraries and their buffers
ID_BYTES = 320  # of memory for a user or item while ids are sorted and looked up, ids of up to about 16 characters


def memory_bound(config: SourceConfig) -> str:
    """Says in words what memory `prepare` takes at the most; mapped files do not count."""
    if source_of(config.format).reads_whole:
        return f"source.format={config.format} is read whole: all interactions in memory"
    return f"at most {config.memory_mib + PREPARE_MIB:,} MiB of memory and {ID_BYTES} bytes for every user and item"


def load_catalog(config: SourceConfig) -> Catalog:
    """Reads (or generates) the catalog that `config` describes.

    Raises:
        InputError: a file is missing, damaged or inconsistent; the message names it, and the row or the setting.
    """
    return source_of(config.format).load(config)
