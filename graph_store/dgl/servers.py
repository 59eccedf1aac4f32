"""The Ray actor that owns the DGL server process of one part, and ends with it (service.py has the protocol)."""

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import ray

from ...core.artifact import open_artifact
from ..graph_artifact import files_of
from ..session import PartLocation
from .session_files import dgl_environment, sweep_shared_memory, write_session_config

if TYPE_CHECKING:
    from ..feature_rows import FeatureRows

STOP_SECONDS = 10.0
CALL_SECONDS = 60.0
LISTEN = "0A"


def _die_with_parent() -> None:
    ctypes.CDLL("libc.so.6").prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def listening_ports() -> set[int]:
    """TCP ports of this host that take connections (/proc/net/tcp: `sl local_address rem_address st`, addresses in hexadecimal)."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == LISTEN}


@ray.remote(num_cpus=0, max_restarts=0)
class GraphServer:
    """Owns the DGL server process of one part, and reads that part's feature rows for workers on other hosts."""

    def __init__(self, graph_url: str, part: int, cache_dir: str | None) -> None:
        self.graph_url, self.part, self.cache_dir = graph_url, part, cache_dir
        self.folder = Path()
        self.manifest: dict = {}
        self.process: subprocess.Popen | None = None
        self.workdir: Path | None = None
        self.session = ""

    def fetch(self) -> None:
        """Verifies this part's files, and fetches them first where graph/ is remote.

        Raises:
            InputError: a file is missing or not as the manifest says.
        """
        self.folder, self.manifest = open_artifact(self.graph_url, "graph", self.cache_dir, files_of([self.part]))

    def address(self) -> str:
        """Finds a free port on this host's cluster interface: `ip port`."""
        ip = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind((ip, 0))
            return f"{ip} {probe.getsockname()[1]}"

    def start(self, session: str, ip_config: str, num_clients: int) -> int:
        """Starts the DGL server process; returns its pid."""
        self.session = session
        self.workdir = Path(tempfile.mkdtemp(prefix=f"promptmm-{session}-"))
        (self.workdir / "ip_config.txt").write_text(ip_config)
        config = write_session_config(self.folder, [self.part], session, self.workdir)
        environment = dict(
            os.environ,
            **dgl_environment(config, num_clients),
            DGL_ROLE="server",
            DGL_SERVER_ID=str(self.part),
            DGL_IP_CONFIG=str(self.workdir / "ip_config.txt"),
        )
        with open(self.workdir / "server.log", "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "promptmm.graph_store.dgl.server_process"],
                env=environment, stdout=log, stderr=subprocess.STDOUT, preexec_fn=_die_with_parent,
            )  # fmt: skip
        return self.process.pid

    def is_listening(self, port: int) -> bool:
        """Whether the server process takes connections; a trial connection would count as a client's."""
        return self.process is None or self.process.poll() is not None or port in listening_ports()

    def exit_code(self) -> int | None:
        """Asks for the process's exit code; None while it runs."""
        return None if self.process is None else self.process.poll()

    def log(self) -> str:
        """Reads the end of the server's output."""
        return "" if self.workdir is None else (self.workdir / "server.log").read_text(errors="replace")[-2000:]

    def location(self) -> PartLocation:
        """Says where this part is served: Ray node id, and local folder of the artifact."""
        return PartLocation(ray.get_runtime_context().get_node_id(), str(self.folder))

    def feature_rows(self, modality: str, first: int, last: int) -> "FeatureRows":
        """Reads rows [first, last) of this part's items as they are stored; for workers on other hosts."""
        from ..feature_rows import map_features  # imports torch, which an actor has no use for before

        return map_features(self.folder, self.manifest, self.part, modality)[first:last].copy()

    def stop(self) -> None:
        """Ends the process (SIGTERM first) and removes its files and shared memory."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(STOP_SECONDS)
        if self.session:
            sweep_shared_memory(self.session)
            for folder in Path(tempfile.gettempdir()).glob(f"promptmm-{self.session}-*"):  # ours, and those of killed clients
                shutil.rmtree(folder, ignore_errors=True)
