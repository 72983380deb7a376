"""Which boot of the machine this is, and whether its clock was set."""

from __future__ import annotations

import time


def boot_id() -> str:
    """The kernel's id of it: what was not synced before another one may be lost. See proc_sys_kernel(5)."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return "unknown"


def clock_offset_ns() -> int:
    """How far the machine's clock is ahead of the time since its boot. Who sets the clock changes it; who slews it does not: clock_gettime(2)."""
    return time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
