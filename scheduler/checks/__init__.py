"""Checks of a session: before it is created (pair.py), and by `doctor`. Each is shown with what to do about it."""
