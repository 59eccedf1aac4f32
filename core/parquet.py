"""Opens Parquet files, and folders of them, by fsspec URL, to be read in pieces."""

from typing import TYPE_CHECKING

from .storage import filesystem

if TYPE_CHECKING:
    import pyarrow.dataset


def open_parquet(url: str) -> "pyarrow.dataset.Dataset":
    """Opens a Parquet file or a folder of Parquet files; nothing but the schema of the first file is read.

    Args:
        url: The file or folder; in a folder, names that begin with `_` or `.` are left out.

    Raises:
        InputError: the URL's protocol is unknown.
        OSError, pyarrow.ArrowException: there is nothing at the URL, or the first file is not Parquet.
    """
    import pyarrow.dataset

    # Buffers made ahead would stay until the file is read: the whole of a wide column of vectors.
    options = pyarrow.dataset.ParquetFragmentScanOptions(pre_buffer=False, use_buffered_stream=True)
    fs, path = filesystem(url)
    format = pyarrow.dataset.ParquetFileFormat(default_fragment_scan_options=options)
    return pyarrow.dataset.dataset(path, filesystem=fs, format=format)
