"""What a worker takes away from itself before it runs programs of strangers: network, memory, processor time, files.

What the platform refuses is left out and told, for the server's log: a limit that is missing is worse than none that
was promised. Imports nothing heavy: the network goes before any thread exists, as Linux wants it.
"""

import ctypes
import os
import sys
from typing import Final

if sys.platform != "win32":
    import resource

FILES_MAX: Final = 256
"""Open files of a worker. It needs some twenty."""

STATM_BYTES_MAX: Final = 256
"""Of the line in which Linux counts a process's memory: seven numbers."""

PROCESSOR_SLACK_SECONDS: Final = 10
"""Processor time that a run may take beyond its limit: the server ends a run at its limit itself, and this is for a
server that cannot."""

_CLONE_NEWNET: Final = 0x40000000
_CLONE_NEWUSER: Final = 0x10000000
"""linux/sched.h"""


def cut_network() -> str:
    """Give up the network, for this process and all that it starts. Returns why not; empty: it is done.

    Connections and sockets that are open stay open. A network of one's own needs either privileges or a namespace of
    users of one's own, which some systems refuse.
    """
    if sys.platform != "linux":
        return "only Linux can"
    unshare = ctypes.CDLL(None, use_errno=True).unshare
    for flags in (_CLONE_NEWNET, _CLONE_NEWNET | _CLONE_NEWUSER):
        if unshare(flags) == 0:
            return ""
    return f"the system refuses it ({os.strerror(ctypes.get_errno())})"


def limit_files() -> None:
    """Few open files, and no dump of the memory, which holds programs of users, after a crash."""
    _limit("RLIMIT_NOFILE", FILES_MAX)
    _limit("RLIMIT_CORE", 0)


def limit_memory(size: int) -> str:
    """Let the process take `size` bytes more than it has now. Returns why not; empty: it is done."""
    own = count_data_bytes()
    return _limit("RLIMIT_DATA", own + size) if own else "only Linux can"


def count_data_bytes() -> int:
    """The memory that the process has of its own, used or not; 0: it cannot be told."""
    try:
        descriptor = os.open("/proc/self/statm", os.O_RDONLY)  # not `Path`: it is asked after each run
    except OSError:
        return 0
    try:
        # counted in pages, in the sixth field of the line: proc(5), statm
        return int(os.read(descriptor, STATM_BYTES_MAX).split()[5]) * os.sysconf("SC_PAGE_SIZE")
    finally:
        os.close(descriptor)


def limit_processor(limit_ns: int, threads: int) -> None:
    """End this process if the next run takes much more processor time than `limit_ns` on `threads` threads."""
    if sys.platform == "win32":
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = used.ru_utime + used.ru_stime + limit_ns / 1e9 * threads + PROCESSOR_SLACK_SECONDS
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(min(seconds, 2**62)) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _limit(name: str, value: int) -> str:
    if sys.platform == "win32":
        return "only Unix can"
    number = getattr(resource, name, None)
    if number is None:
        return f"the system has no {name}"
    _, hard = resource.getrlimit(number)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    try:
        resource.setrlimit(number, (value, value))
    except (OSError, ValueError) as error:
        return str(error)
    return ""
