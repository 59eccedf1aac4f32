"""A DGL server process: `python -m promptmm.graph_store.dgl.server_process`; its settings are DGL_* environment variables."""

import os
import time
from types import SimpleNamespace

import dgl
from dgl.distributed import rpc_server

from .neighbours import register

CLIENT_SECONDS = 0.3  # for a client to listen, which it does right after it has registered; DGL tries again where it did not


def main() -> None:
    """Serves until every client has left; SIGTERM makes DGL unlink its shared-memory segments."""
    register()
    rpc_server.time = SimpleNamespace(sleep=lambda seconds: time.sleep(min(seconds, CLIENT_SECONDS)))  # DGL sleeps three seconds
    dgl.distributed.initialize(os.environ["DGL_IP_CONFIG"])  # never returns in the server role


if __name__ == "__main__":
    main()
