"""Dying with the parent. Run as a script it is what a launcher puts before a command: `child.py PARENT_PID ARGV…`.

A conductor may be killed at any instant, and then its trials must not train on as orphans on devices that the next
conductor gives out again. The kernel's parent-death signal (prctl(2), PR_SET_PDEATHSIG) survives execve(2), so a script
that sets it and then becomes the command costs a few milliseconds and needs no code between fork and exec, where other
threads' locks may be held. It follows the parent's *thread*: tasks are started from the main one.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process when the thread that started it ends.

    `parent` is the pid that the parent gave as its own: where it is no longer our parent, it died before the signal
    was set and nobody would tell us, so we end here. Does nothing where the system has no such signal (macOS): there
    a trial ends because its conductor's counter stands still.
    """
    if sys.platform != "linux":
        return
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if parent is not None and os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


def main() -> None:
    """Set the signal, then become the command."""
    parent, *argv = sys.argv[1:]
    die_with_parent(int(parent))
    try:
        os.execvp(argv[0], argv)  # noqa: S606  no shell is wanted
    except OSError as error:
        print(f"{argv[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(127)


if __name__ == "__main__":
    main()
