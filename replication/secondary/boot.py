"""Which boot of the machine this is."""

from __future__ import annotations


def boot_id() -> str:
    """The kernel's id of it: what was not synced before another one may be lost. See proc_sys_kernel(5)."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return "unknown"
