"""Several hosts on one machine: network namespaces on a bridge, each with a /dev/shm of its own. Needs root and iproute2."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


def why_not() -> str | None:
    """Why hosts cannot be simulated here, or None."""
    if os.geteuid() != 0:
        return "needs root for network namespaces"
    missing = [tool for tool in ("ip", "unshare", "mount") if shutil.which(tool) is None]
    return f"needs {', '.join(missing)}" if missing else None


def sh(*words: str, check: bool = True) -> None:
    subprocess.run(words, check=check, timeout=30, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL if not check else None)


@dataclass
class Hosts:
    """Hosts 0..n-1 with addresses 10.79.<net>.<host + 1>."""

    tag: str
    net: int
    folder: Path
    count: int
    shm_gib: int = 4

    def address(self, host: int) -> str:
        return f"10.79.{self.net}.{host + 1}"

    def name(self, host: int) -> str:
        return f"{self.tag}h{host}"

    def up(self) -> None:
        sh("ip", "link", "add", f"{self.tag}br", "type", "bridge")
        sh("ip", "link", "set", f"{self.tag}br", "up")
        for host in range(self.count):
            name, link = self.name(host), f"{self.tag}v{host}"
            sh("ip", "netns", "add", name)
            sh("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
            sh("ip", "link", "set", link, "master", f"{self.tag}br", "up")
            sh("ip", "-n", name, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
            sh("ip", "-n", name, "link", "set", "eth0", "up")
            sh("ip", "-n", name, "link", "set", "lo", "up")
            shm = self.shm(host)
            shm.mkdir(parents=True)
            sh("mount", "-t", "tmpfs", "-o", f"size={self.shm_gib}g", "tmpfs", str(shm))

    def shm(self, host: int) -> Path:
        """The host's /dev/shm, as this machine sees it."""
        return self.folder / f"shm{host}"

    def command(self, host: int, words: list[str]) -> list[str]:
        """`words` as a command on a host."""
        inside = f'mount --bind {self.shm(host)} /dev/shm && exec "$@"'
        return ["ip", "netns", "exec", self.name(host), "unshare", "-m", "sh", "-c", inside, "sh", *words]

    def pids(self, host: int) -> list[int]:
        """Processes that run on a host."""
        found = subprocess.run(["ip", "netns", "pids", self.name(host)], capture_output=True, text=True, timeout=30)
        return [int(word) for word in found.stdout.split()]

    def down(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for host in range(self.count):
                for pid in self.pids(host):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
            time.sleep(2)
        for host in range(self.count):
            sh("ip", "netns", "del", self.name(host), check=False)
            sh("umount", str(self.shm(host)), check=False)
        sh("ip", "link", "del", f"{self.tag}br", check=False)


@contextlib.contextmanager
def simulated_hosts(count: int, folder: Path, shm_gib: int = 4) -> Iterator[Hosts]:
    """Brings hosts up, and down with everything that runs on them."""
    hosts = Hosts(f"pm{os.getpid() % 10_000}", os.getpid() % 250, folder, count, shm_gib)
    try:
        hosts.up()
        yield hosts
    finally:
        hosts.down()
