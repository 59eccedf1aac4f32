"""A DGL server process: `python -m promptmm.graph_store.dgl.server_process`; its settings are DGL_* environment variables."""

import os

import dgl

from .neighbours import register


def main() -> None:
    """Serves until every client has left; SIGTERM makes DGL unlink its shared-memory segments."""
    register()
    dgl.distributed.initialize(os.environ["DGL_IP_CONFIG"])  # never returns in the server role


if __name__ == "__main__":
    main()
