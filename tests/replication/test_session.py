"""What the processes of a session tell each other in its directory."""

from __future__ import annotations

import threading

from replication.session import SessionDir


def test_how_changes_are_noticed_is_never_half_told(tmp_path):
    """Who reads nothing would scan, and take for covered what is recorded."""
    place = SessionDir(tmp_path, "s")
    place.path.mkdir(parents=True)
    place.set_detector("fanotify")
    told, over = set(), threading.Event()

    def read():
        while not over.is_set():
            told.add(place.detector())

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(300):
        place.set_detector("changelogs")
        place.set_detector("fanotify")
    over.set()
    reader.join()
    assert told == {"changelogs", "fanotify"}
