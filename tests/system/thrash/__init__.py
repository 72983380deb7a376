"""The thrasher: work on the primary, random faults everywhere, and the promise of the mark checked all the while.

    python -m tests.system.thrash --seeds 0-199 --jobs 2

Needs root (file systems on loop devices, btrfs snapshots). docs/reliability.md says what it does.
"""
