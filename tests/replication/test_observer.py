"""A directory that came from outside is sent with all it holds, before anybody was asked; a wrong guess costs little."""

from __future__ import annotations

import errno
import os
import time

import pytest

from replication.observation import Change
from replication.observer import Observer
from replication.volume.directory import DirectoryVolume
from replication.volume.identity import ROOT_GFID, identify_fd
from tests.secondary.primary import Far


@pytest.fixture
def pair(tmp_path):
    """A primary volume with a tree that has just come, its secondary, and a client to that."""
    for directory in range(3):
        (tmp_path / f"primary/tree/d{directory}").mkdir(parents=True)
        for file in range(20):
            (tmp_path / f"primary/tree/d{directory}/f{file}").write_text(f"{directory} {file}\n" * 50)
    (tmp_path / "secondary").mkdir()
    time.sleep(0.05)  # a version younger than a tick of the clock is not trusted, and its content not carried
    with Far(tmp_path / "secondary") as client:
        yield DirectoryVolume(os.fsencode(tmp_path / "primary"), ""), client, tmp_path


class Session:
    """What sync_entries does with an observer, one directory at a time."""

    def __init__(self, volume, client, position):
        self.volume = volume
        self.observer = Observer(volume, client, position=position, after=position - 1, carry=True)

    def look(self, name):
        self.observer.look(self.volume.root_fd, ROOT_GFID, b"", {name: Change.DATA})
        return self.take()

    def take(self):
        found = list(self.observer.findings.unlisted)
        self.observer.findings.unlisted.clear()
        return found

    def list(self, gfid, path):
        fd = self.volume.open_dir(path, gfid)
        try:
            names = self.volume.names(fd, is_root=False)
            empty = self.observer.seems_empty(gfid)
            return self.observer.list_directory(fd, gfid, path, names, empty=empty)
        finally:
            os.close(fd)


def send_all(session, name):
    todo = session.look(name)
    while todo:
        todo += session.list(*todo.pop())
    return session.observer.finish()


def test_no_answer_is_waited_for(pair):
    volume, client, tmp_path = pair
    session = Session(volume, client, 1)
    answered: list[object] = []
    session.observer.collect = answered.append  # nobody looks at answers before the end
    todo = session.look(b"tree")
    assert [path for _, path in todo] == [b"tree"]
    todo = session.list(*todo[0])
    assert sorted(path for _, path in todo) == [b"tree/d0", b"tree/d1", b"tree/d2"]
    for gfid, path in todo:
        session.list(gfid, path)
    del session.observer.collect
    findings = session.observer.finish()
    assert (findings.files, findings.needs, findings.unlisted) == (60, [], [])
    assert (tmp_path / "secondary/tree/d1/f7").read_text() == "1 7\n" * 50


def test_a_wrong_guess_sends_nothing_more(pair):
    volume, client, _ = pair
    assert send_all(Session(volume, client, 1), b"tree").files == 60
    session = Session(volume, client, 2)
    ((gfid, path),) = session.look(b"tree")
    assert session.observer.seems_empty(gfid)
    session.observer.flush()
    session.observer.collect()
    assert not session.observer.seems_empty(gfid)
    session.list(gfid, path)
    findings = session.observer.finish()
    assert sorted(path for _, path in findings.unlisted) == [b"tree", b"tree/d0", b"tree/d1", b"tree/d2"]
    assert (findings.files, findings.needs) == (0, [])


def test_a_directory_that_came_among_files_that_were_written(pair):
    """Content travels with the look at its file, not with what was gathered before."""
    volume, client, tmp_path = pair
    (tmp_path / "primary/before").mkdir()
    (tmp_path / "primary/written").write_text("content")
    time.sleep(0.05)
    session = Session(volume, client, 1)
    session.observer.look(volume.root_fd, ROOT_GFID, b"", {b"before": Change.NONE})
    session.observer.look(volume.root_fd, ROOT_GFID, b"", {b"written": Change.DATA, b"tree": Change.DATA})
    findings = session.observer.finish()
    assert (findings.files, findings.needs) == (1, [])
    assert (tmp_path / "secondary/written").read_text() == "content"


@pytest.mark.parametrize("later", ["longer than before", "as long", "short"])
def test_a_file_that_is_met_twice_in_one_look_and_changed_between(pair, later):
    """What was read at first is of another state than the one that is told."""
    volume, client, tmp_path = pair
    primary, secondary = tmp_path / "primary", tmp_path / "secondary"
    (primary / "moves").write_text("content")
    (primary / "stays").write_text("another")
    time.sleep(0.05)
    session = Session(volume, client, 1)
    session.observer.look(volume.root_fd, ROOT_GFID, b"", {b"moves": Change.DATA, b"stays": Change.DATA})
    os.rename(primary / "moves", primary / "moved")
    (primary / "moved").write_text(later)
    time.sleep(0.05)
    session.observer.look(volume.root_fd, ROOT_GFID, b"", {b"moves": Change.NONE, b"moved": Change.NONE})
    findings = session.observer.finish()
    assert (secondary / "stays").read_text() == "another"
    assert not (secondary / "moved").exists() or (secondary / "moved").read_text() == later
    assert [item.path for item in findings.needs] in ([b"moved"], [])
    assert (secondary / "moved").exists() != bool(findings.needs)


def test_a_directory_of_which_a_name_cannot_be_read_deletes_nothing(pair, monkeypatch):
    """A read error says nothing of what is there."""
    volume, client, tmp_path = pair
    send_all(Session(volume, client, 1), b"tree")
    (tmp_path / "primary/tree/d1/f3").unlink()
    observe = volume.observe

    def failing(dir_fd, name, change):
        if name == b"f7":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return observe(dir_fd, name, change)

    monkeypatch.setattr(volume, "observe", failing)
    session = Session(volume, client, 2)
    gfid = identify_fd(volume.open_dir_unchecked(b"tree/d1"))[0]
    session.list(gfid, b"tree/d1")
    found = session.observer.finish()
    assert [(failure.step, failure.path) for failure in found.failures] == [("entry", "tree/d1/f7")]
    assert sorted(os.listdir(tmp_path / "secondary/tree/d1")) == sorted(f"f{n}" for n in range(20))
    monkeypatch.setattr(volume, "observe", observe)
    session = Session(volume, client, 3)
    session.list(gfid, b"tree/d1")
    assert session.observer.finish().failures == []
    assert not (tmp_path / "secondary/tree/d1/f3").exists()
