"""What graph servers tell the workers that connect to them.

The supervisor of the servers imports this module and no torch, which takes seconds and hundreds of MiB. A server's actor imports DGL when
it writes the session's files.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PartLocation:
    """Where a part is served.

    Attributes:
        node: The host, such as its Ray node id.
        folder: The graph/ artifact's folder on that host.
    """

    node: str
    folder: str


@dataclass(frozen=True)
class Session:
    """One set of graph servers, and what a worker needs to connect to it; made for every attempt of a job.

    Example, of two parts on two hosts, with two workers as clients:

        Session(
            name="3f9a0c12de",
            graph_url="s3://bucket/runs/mine/graph",
            locations=(PartLocation("a81f...", "/cache/graph"), PartLocation("77c0...", "/cache/graph")),
            ip_config="10.0.0.4 41873\\n10.0.0.5 36021\\n",
            num_clients=2,
            servers=(<actor of part 0>, <actor of part 1>),
            cache_dir="/cache",
        )

    Attributes:
        name: Distinguishes this session's tables and shared memory from those of others.
        graph_url: The graph/ artifact.
        locations: Where each part is served.
        ip_config: `ip port` of each part's server, a line each, as DGL reads them.
        num_clients: Workers that connect.
        servers: The backend's handle of each part's server.
        cache_dir: Where a remote artifact is downloaded to.
    """

    name: str
    graph_url: str
    locations: tuple[PartLocation, ...]
    ip_config: str = ""
    num_clients: int = 1
    servers: tuple[Any, ...] = ()
    cache_dir: str | None = None

    @property
    def part_nodes(self) -> list[str]:
        """The host of every part."""
        return [location.node for location in self.locations]
