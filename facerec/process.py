"""How the process of a command uses main memory, and how its threads wait."""

from __future__ import annotations

import ctypes
import os
import sys

from facerec.errors import UserError

# From malloc.h of glibc, which alone knows them.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT = (1 << 30, 1 << 25)  # bytes; before glibc 2.35, 32 MiB is the most that it takes


def keep_memory() -> str:
    """Have the C library keep what is freed, for the next step, rather than give it back to the system.

    glibc gives large blocks back as soon as they are freed, so that the activations of every step are mapped
    anew, page by page: a third of a step on the CPU. Blocks up to 1 GiB stay from now on, and results are
    equal; `facerec.device.release_memory` gives back what is unused. ``FACEREC_ALLOCATOR=system`` leaves
    everything as it is.

    Returns:
        What holds now, for the log of a run that is accepted; nothing where all is as it was.

    Raises:
        UserError: `FACEREC_ALLOCATOR` is neither ``keep`` nor ``system``.
    """
    wanted = os.environ.get("FACEREC_ALLOCATOR", "keep")
    if wanted not in ("keep", "system"):
        raise UserError(f"FACEREC_ALLOCATOR={wanted}: must be keep or system")
    size = _raise_thresholds() if wanted == "keep" else 0
    return f"freed blocks up to {size >> 20} MiB stay (FACEREC_ALLOCATOR=system)" if size else ""


def _raise_thresholds() -> int:
    """Return the largest block that glibc keeps now, in bytes; 0 where the C library is another."""
    if not sys.platform.startswith("linux"):
        return 0
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):  # musl has a mallopt that does nothing
        return 0
    size = next((size for size in _KEPT if libc.mallopt(_M_MMAP_THRESHOLD, size)), 0)
    if size:
        libc.mallopt(_M_TRIM_THRESHOLD, -1)
    return size


def wait_briefly() -> None:
    """Let OpenMP's waiting threads sleep soon; call it before torch is loaded, which reads it then.

    GNU's threads spin for long by default. Where another process wants their core, each end of a parallel
    part then waits for a thread that does not run. What the user has set stays.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "1000"
