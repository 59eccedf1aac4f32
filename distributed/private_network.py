"""A network of its own for a command that needs none: what its processes listen on is then reachable by nobody else.

Ray's processes, torch's store and DGL's servers listen on all interfaces, and the last two take whatever connects. A network namespace has
a loopback interface of its own and no other, so that neither another host nor another user of this one reaches them.
"""

import ctypes
import fcntl
import os
import socket
import struct
from pathlib import Path

NEW_USER, NEW_NETWORK = 0x10000000, 0x40000000  # CLONE_NEWUSER, CLONE_NEWNET of <sched.h>
SET_FLAGS, UP = 0x8914, 0x1  # SIOCSIFFLAGS, IFF_UP of <net/if.h>


def enter_private_network() -> bool:
    """Gives the calling thread, and all threads and processes that it starts from now on, a network of their own with loopback alone.

    It needs the right to administer the system (CAP_SYS_ADMIN, as root has it), or a system that lets users have namespaces and a process
    that has no threads yet.

    Returns:
        Whether it did; where the system does not allow it, all is as it was.
    """
    if not hasattr(os, "fork") or not Path("/proc/self/ns/net").exists():
        return False
    libc = ctypes.CDLL(None)
    if libc.unshare(NEW_NETWORK):
        user, group = os.geteuid(), os.getegid()
        if libc.unshare(NEW_USER | NEW_NETWORK):
            return False
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SET_FLAGS, struct.pack("16sH14x", b"lo", UP))
    return True
