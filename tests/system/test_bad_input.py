"""Bad input and bad luck: one clear line, the right exit code, and nothing lost."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.conftest import missing
from tests.filesystems import available, filesystem, mounted
from tests.judge import assert_same
from tests.system.harness import secondary_agents
from tests.system.lines import ended, said
from tests.system.trees import many_small_files
from tests.system.unprivileged import as_nobody


def tree_of(root):
    """Everything below, with content, inode number and times: equal means that nothing was touched."""
    found = {}
    for directory, dirs, files in os.walk(root):
        for name in [".", *dirs, *files]:
            path = os.path.join(directory, name)
            stat = os.lstat(path)
            content = Path(path).read_bytes() if os.path.isfile(path) and not os.path.islink(path) else None
            found[path] = (stat.st_ino, stat.st_mode, stat.st_mtime_ns, stat.st_ctime_ns, content)
    return found


def displaced(secondary):
    """Relative names of everything that was moved out of the way, without the number of its place."""
    root = Path(secondary) / ".seamark" / "displaced"
    return sorted(p.name for p in root.rglob("*"))


# ---- the primary


def test_a_primary_that_is_missing_is_not_found(place):
    place.primary.rmdir()
    ended(place.once(), 4, str(place.primary), "give a directory that exists")
    assert not place.secondary.exists()


def test_a_primary_that_is_a_file_is_refused(place):
    place.primary.rmdir()
    place.primary.write_text("a file")
    ended(place.once(), 2, str(place.primary), "Not a directory")


def test_a_primary_emptied_between_two_runs_empties_nothing(place):
    many_small_files(place.primary, 20, 2)
    assert place.once().process.returncode == 0
    before = tree_of(place.secondary)
    for entry in place.primary.iterdir():
        shutil.rmtree(entry)
    ended(place.once(), 1, "is empty", "is it mounted?")
    kept = tree_of(place.secondary)
    assert {p: v for p, v in kept.items() if ".seamark" not in p and p != f"{place.secondary}/."} == {
        p: v for p, v in before.items() if ".seamark" not in p and p != f"{place.secondary}/."
    }


def test_a_primary_replaced_by_another_directory_empties_nothing(place):
    """As when the disk is not mounted and something else was written to the mount point."""
    many_small_files(place.primary, 20, 2)
    assert place.once().process.returncode == 0
    os.rename(place.primary, place.base / "elsewhere")
    place.primary.mkdir()
    (place.primary / "other").write_text("other")
    ended(place.once(), 1, "is not the directory that this session replicated before")
    assert (place.secondary / "d0").is_dir()
    run = place.once("--adopt")
    assert run.process.returncode == 0, run.report()
    assert_same(place.primary, place.secondary)


@pytest.mark.root
@pytest.mark.parametrize("detector", ["auto", pytest.param("scan", marks=pytest.mark.slow)])
def test_a_primary_that_is_unmounted_while_it_runs_empties_nothing(place, detector):
    """Below the mount point there is another directory, with other files in it."""
    if reason := available("tmpfs"):
        missing(reason)
    with filesystem("tmpfs", place.base / "fs", mib=32) as root:
        many_small_files(root, 40, 4)
        place.primary = root
        with place.run("--change-detector", detector) as run:
            run.wait_idle()
            before = tree_of(place.secondary / "d0")
            with mounted("tmpfs", "tmpfs", root):
                (root / "another file").write_text("not of this volume")
                run.wait(20)
            ended(run, 1, "is not the directory that it was", "nothing was deleted")
        assert tree_of(place.secondary / "d0") == before
        assert not (place.secondary / "another file").exists()
        run = place.once()
        assert run.process.returncode == 0, run.report()
        assert_same(root, place.secondary)


@pytest.mark.slow
def test_a_primary_that_is_renamed_away_while_it_runs_empties_nothing(place):
    many_small_files(place.primary, 40, 4)
    with place.run() as run:
        run.wait_idle()
        os.rename(place.primary, place.base / "elsewhere")
        run.wait(20)
        ended(run, 1, "is gone", "nothing was deleted")
    os.rename(place.base / "elsewhere", place.primary)
    run = place.once()
    assert run.process.returncode == 0, run.report()
    assert_same(place.primary, place.secondary)


def test_nested_either_way_is_refused_also_through_symlinks(place):
    inner = place.primary / "inner"
    ended(place.once(secondary=inner), 2, "the secondary is inside of the primary")
    ended(place.once(secondary=place.primary), 2, "the same directory")
    os.symlink(place.primary, place.base / "link")
    ended(place.once(secondary=place.base / "link" / "inner"), 2, "the secondary is inside of the primary")
    ended(place.once(secondary=place.base / "link"), 2, "the same directory")
    place.secondary.mkdir()
    os.symlink(place.secondary, place.base / "link2")
    (place.secondary / "p").mkdir()
    place.primary = place.secondary / "p"
    ended(place.once(secondary=place.base / "link2"), 2, "the primary is inside of the secondary")
    assert not inner.exists()
    assert sorted(os.listdir(place.secondary)) == ["p"]


def test_a_state_directory_inside_of_the_primary_is_refused(place):
    """It would be replicated, and each run would change what is to be replicated."""
    place.state = place.primary / "state"
    ended(place.once(), 2, "state directory", "inside of the primary")


def test_a_state_directory_inside_of_the_secondary_is_refused(place):
    """It would be foreign there, and be moved out of the way while in use."""
    place.secondary.mkdir()
    place.state = place.secondary / "state"
    ended(place.once(), 2, "state directory", "inside of the secondary")


# ---- the secondary


def test_a_directory_that_is_not_ours_is_refused_and_left_alone(place):
    many_small_files(place.primary, 5, 1)
    place.secondary.mkdir()
    (place.secondary / "precious").write_text("mine")
    before = tree_of(place.secondary)
    ended(place.once(), 2, "not empty", "--adopt")
    assert tree_of(place.secondary) == before


def test_a_secondary_whose_parent_is_missing_is_not_found(place):
    ended(place.once(secondary=place.base / "no" / "such"), 4, "no/such")


def test_a_secondary_that_is_a_file_is_refused(place):
    place.secondary.write_text("a file")
    ended(place.once(), 4, "not a directory")
    assert place.secondary.read_text() == "a file"


def test_a_secondary_of_another_session_is_refused(place):
    many_small_files(place.primary, 5, 1)
    assert place.once().process.returncode == 0
    other = place.base / "other"
    other.mkdir()
    (other / "file").write_text("other")
    before = tree_of(place.secondary)
    place.primary = other
    ended(place.once(), 8, "belongs to session")
    ended(place.once("--adopt"), 8, "belongs to session")
    assert tree_of(place.secondary) == before


def test_adopting_sends_nothing_that_is_right_and_displaces_the_rest(place):
    many_small_files(place.primary, 200, 4)
    (place.primary / "large").write_bytes(os.urandom(3_000_000))
    shutil.copytree(place.primary, place.secondary, symlinks=True)
    (place.secondary / "extra").mkdir()
    (place.secondary / "extra" / "file").write_text("mine")
    (place.secondary / "d0" / "also mine").write_text("mine")
    (place.secondary / "d1" / "f1").write_text("another content")
    (place.secondary / "d2" / "f2").unlink()
    run = place.once("--adopt")
    assert run.process.returncode == 0, run.report()
    assert_same(place.primary, place.secondary)
    counters = sent(run)
    assert counters <= 2 * 4096, counters
    assert {"extra", "file", "also mine"} <= set(displaced(place.secondary))


def sent(run):
    """Bytes that had to travel, as the run says."""
    return run.status["bytes_sent"]


@pytest.mark.parametrize("gone", ["empty", "missing", "lost+found"])
def test_a_secondary_that_is_not_mounted_is_not_filled(done, gone):
    """Below a mount point there is an empty directory; or the parent is the mount point, and nothing is there."""
    os.rename(done.secondary, done.base / "unmounted")
    if gone != "missing":
        done.secondary.mkdir()
    if gone == "lost+found":
        (done.secondary / "lost+found").mkdir()
    before = tree_of(done.secondary)
    for options in ([], ["--dry-run"]):
        ended(done.once(*options), 1, "is empty", "is it mounted?", "--adopt")
        assert tree_of(done.secondary) == before
        assert done.secondary.exists() is (gone != "missing")
    if gone != "missing":
        shutil.rmtree(done.secondary)
    os.rename(done.base / "unmounted", done.secondary)
    run = done.once()
    assert run.process.returncode == 0, run.report()
    assert run.status["files_done"] == 0
    assert_same(done.primary, done.secondary)


def test_a_secondary_that_was_replaced_on_purpose_is_filled_with_adopt(done):
    shutil.rmtree(done.secondary)
    done.secondary.mkdir()
    ended(done.once(), 1, "--adopt")
    run = done.once("--adopt")
    assert run.process.returncode == 0, run.report()
    assert_same(done.primary, done.secondary)
    (done.primary / "later").write_text("later")
    run = done.once()
    assert run.process.returncode == 0, run.report()
    assert_same(done.primary, done.secondary)


@pytest.mark.slow
def test_a_secondary_that_is_unmounted_while_it_runs_ends_the_run(done):
    """Also after a start with --adopt: that was about what stood there then."""
    for options in ([], ["--adopt"]):
        with done.run(*options) as run:
            run.wait_idle()
            os.rename(done.secondary, done.base / "unmounted")
            done.secondary.mkdir()
            for pid in secondary_agents(run):
                os.kill(pid, signal.SIGKILL)
            (done.primary / f"later{len(options)}").write_text("later")
            run.wait(30)
            ended(run, 1, "is empty", "is it mounted?", "--adopt")
        assert os.listdir(done.secondary) == []
        done.secondary.rmdir()
        os.rename(done.base / "unmounted", done.secondary)
    run = done.once()
    assert run.process.returncode == 0, run.report()
    assert_same(done.primary, done.secondary)


# ---- two runs


def test_two_runs_on_one_pair_are_one_too_many(place):
    many_small_files(place.primary, 20, 2)
    with place.run() as run:
        run.wait_idle()
        ended(place.once(), 8, "is being run by another process")
        state, place.state = place.state, place.base / "other state"
        ended(place.once(), 8, "is being run by another process")
        place.state = state
        (place.primary / "later").write_text("still at work")
        run.wait_same()
        assert run.stop() == 0
    assert_same(place.primary, place.secondary)


# ---- what cannot be read


@pytest.mark.root
def test_an_unreadable_file_is_reported_and_the_rest_goes_on(place):
    """As an unprivileged user: exit code 3, the mark does not pass it, and it follows once it can be read."""
    many_small_files(place.primary, 40, 4)
    prefix = as_nobody(place.base)
    secret, closed = place.primary / "d0" / "f0", place.primary / "d1"
    secret.chmod(0)
    closed.chmod(0)
    run = place.once("--change-detector", "scan", prefix=prefix)
    lines = said(run)
    assert run.process.returncode == 3, run.report()
    assert any("d0/f0" in m["message"] for m in run.of_type("log")), lines
    assert any("d1" in m["message"] for m in run.of_type("log"))
    assert (place.secondary / "d2" / "f2").is_file()
    assert not (place.secondary / "d0" / "f0").exists()
    secret.chmod(0o600)
    closed.chmod(0o700)
    run = place.once("--change-detector", "scan", prefix=prefix)
    assert run.process.returncode == 0, run.report()
    assert_same(place.primary, place.secondary)


# ---- damaged state


def files(place, pattern):
    (found,) = place.state.glob(f"sessions/*/{pattern}")
    return found


@pytest.fixture
def done(place):
    """A place whose first run is complete."""
    many_small_files(place.primary, 60, 4)
    assert place.once().process.returncode == 0
    return place


def test_a_damaged_session_file_is_named(done):
    path = files(done, "session.toml")
    path.write_bytes(b"\0\xff{garbage")
    ended(done.once(), 2, str(path), "damaged")
    path.unlink()
    run = done.once()
    assert run.process.returncode == 0, run.report()
    assert sent(run) == 0  # what is young is compared, by digest
    assert_same(done.primary, done.secondary)


def test_a_session_file_of_the_wrong_shape_is_named(done):
    path = files(done, "session.toml")
    for text in ("[]", "primary = 3", 'primary = "/a"', "ssh = 3", "", "jobs ="):
        path.write_text(text)
        ended(done.once(), 2, str(path), "damaged")


def test_a_damaged_progress_database_is_named(done):
    path = files(done, "progress.sqlite")
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    path.write_bytes(os.urandom(20_000))
    ended(done.once(), 2, str(path), "move it away")
    path.unlink()
    run = done.once()
    assert run.process.returncode == 0, run.report()
    assert sent(run) == 0  # what is young is compared, by digest
    assert_same(done.primary, done.secondary)


def test_a_progress_database_damaged_in_the_middle_is_named(done):
    path = files(done, "progress.sqlite")
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(os.urandom(max(4096, path.stat().st_size - 4096)))
    ended(done.once(), 2, str(path), "move it away")


def test_a_truncated_segment_is_covered_by_a_crawl(done):
    with done.run() as run:
        run.wait_idle()
        for number in range(5):
            (done.primary / "d0" / f"live{number}").write_text("x")
            run.wait_same()
        run.process.send_signal(signal.SIGSTOP)
        run.process.send_signal(signal.SIGCONT)
        assert run.stop() == 0
    segments = sorted(p for p in files(done, "changelog").rglob("*") if p.is_file() and p.stat().st_size > 60)
    assert segments
    for path in segments:
        if "sqlite" not in path.name:
            os.truncate(path, path.stat().st_size - 7)
    (done.primary / "d1" / "after").write_text("y")
    run = done.once()
    assert run.process.returncode == 0, run.report()
    assert_same(done.primary, done.secondary)
    said(run)


@pytest.mark.parametrize("how", ["garbage", pytest.param("removed", marks=pytest.mark.slow), "middle"])
def test_a_lost_index_is_rebuilt_without_sending_what_is_right(done, how):
    hidden = done.secondary / ".seamark"
    names = [p for p in hidden.iterdir() if p.name.startswith("index")]
    assert names
    for path in names:
        if how == "removed" or path.suffix != ".sqlite":
            path.unlink()
        elif how == "garbage":
            path.write_bytes(b"garbage" * 1000)
        else:
            with open(path, "r+b") as file:
                file.seek(4096)
                file.write(os.urandom(path.stat().st_size - 4096))
    (done.primary / "d0" / "f0").write_text("changed meanwhile")
    (done.primary / "d1" / "f1").unlink()
    os.rename(done.primary / "d2", done.primary / "renamed")
    run = done.once()
    assert run.process.returncode == 0, run.report()
    said(run)
    assert_same(done.primary, done.secondary)


def test_a_lost_index_costs_no_data(done):
    for path in (done.secondary / ".seamark").glob("index*"):
        path.unlink()
    run = done.once()
    assert run.process.returncode == 0, run.report()
    assert sent(run) == 0, run.status
    assert displaced(done.secondary) == []
    assert_same(done.primary, done.secondary)


def test_a_lost_mark_of_the_owner_is_adopted_again(done):
    (done.secondary / ".seamark" / "owner").unlink()
    ended(done.once(), 2, "--adopt")
    run = done.once("--adopt")
    assert run.process.returncode == 0, run.report()
    assert_same(done.primary, done.secondary)


# ---- a secondary that cannot be written


@pytest.fixture
def small(place):
    """A place whose secondary is a file system of its own, of 24 MiB."""
    if reason := available("ext4"):
        missing(reason)
    with filesystem("ext4", place.base / "fs", mib=24) as root:
        os.rmdir(root / "lost+found")
        place.secondary = root
        yield place


@pytest.mark.root
def test_a_read_only_secondary_is_refused_until_it_is_writable(small):
    many_small_files(small.primary, 40, 4)
    sh(f"mount -o remount,ro {small.secondary}")
    ended(small.once(), 5, "ead-only")
    sh(f"mount -o remount,rw {small.secondary}")
    assert small.once().process.returncode == 0
    sh(f"mount -o remount,ro {small.secondary}")
    ended(small.once(), 5, "ead-only")
    sh(f"mount -o remount,rw {small.secondary}")
    assert small.once().process.returncode == 0
    assert_same(small.primary, small.secondary)


def sh(command):
    subprocess.run(["sh", "-ec", command], check=True)


@pytest.mark.root
def test_a_secondary_that_turns_read_only_holds_the_mark(place):
    """As ext4 does after an error of the disk: it says so, ends when told to, and goes on after the repair."""
    if reason := available("ext4"):
        missing(reason)
    image, place.secondary = place.base / "image", place.base / "mounted"
    place.secondary.mkdir()
    sh(
        f"truncate -s 32M {image} && mkfs.ext4 -q -F -E lazy_itable_init=0 {image} && mount -o loop,errors=remount-ro {image} {place.secondary}"
    )
    try:
        os.rmdir(place.secondary / "lost+found")
        many_small_files(place.primary, 40, 4)
        with place.run() as run:
            run.wait_idle()
            device = os.path.basename(
                subprocess.check_output(["findmnt", "-no", "SOURCE", place.secondary], text=True).strip()
            )
            Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("1")
            mark = run.progress()["stime_ns"]
            (place.primary / "d0" / "new").write_text("new")
            (place.primary / "d0" / "f0").unlink()
            run.wait_for(lambda: "ead-only" in run.status.get("state", ""), "a word of it", 20)
            assert run.progress()["stime_ns"] <= mark + 10**9
            assert run.stop() == 0
            said(run)
        sh(
            f"umount {place.secondary}; fsck.ext4 -fp {image} || [ $? = 1 ]; mount -o loop {image} {place.secondary}"
        )
        os.rmdir(place.secondary / "lost+found")  # fsck makes it again
        run = place.once()
        assert run.process.returncode == 0, run.report()
        assert_same(place.primary, place.secondary)
    finally:
        subprocess.run(["umount", place.secondary], check=False)


@pytest.mark.slow
@pytest.mark.root
def test_once_ends_when_its_time_is_over(small):
    """Full in the middle: cron gets its end, a word of what it waited for, and the next run goes on."""
    many_small_files(small.primary, 40, 4)
    (small.primary / "big").write_bytes(os.urandom(4_000_000))
    filler = small.secondary / "lost+found"
    free = os.statvfs(small.secondary).f_bavail * os.statvfs(small.secondary).f_frsize
    filler.mkdir()
    (filler / "filler").write_bytes(b"f" * (free - 3_000_000))
    ended(small.once("--timeout", "15"), 5, "not done within 15 s", "space", "the next run goes on")
    shutil.rmtree(filler)
    run = small.once("--timeout", "10m")
    assert run.process.returncode == 0, run.report()
    assert_same(small.primary, small.secondary)


@pytest.mark.root
@pytest.mark.parametrize(
    "method",
    ["auto", pytest.param("rsync", marks=pytest.mark.slow), pytest.param("tar", marks=pytest.mark.slow)],
)
def test_a_full_secondary_recovers_when_there_is_room_again(small, method):
    many_small_files(small.primary, 40, 4)
    with small.run("--sync-method", method) as run:
        run.wait_idle()
        filler = small.base / "fs" / "ext4" / ".seamark" / "filler"
        free = os.statvfs(small.secondary).f_bavail * os.statvfs(small.secondary).f_frsize
        filler.write_bytes(b"f" * (free - 3_000_000))
        for number in range(5):
            (small.primary / f"big{number}").write_bytes(os.urandom(2_000_000))
        many_small_files(small.primary / "more", 100, 4, seed=5)
        run.wait_for(lambda: "space" in run.status.get("state", "").lower(), "a word of it")
        assert run.process.poll() is None
        filler.unlink()
        run.wait_same(60)
        run.wait_idle(60)
        assert run.progress()["stime_ns"] > 0
        assert run.status["failures"] == 0, run.report()
        assert run.stop() == 0
        said(run)
    assert_same(small.primary, small.secondary)
