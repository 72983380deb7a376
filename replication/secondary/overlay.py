"""A view of a tree by overlayfs: what is written to it goes to directories beside the root, and the root stays as it is.

It costs no time and little room on any file system, but needs root, and the root must not be a file system of its own (the layers
have to be on the same one: only then have the inodes their own numbers). And it is no copy: what changes in the root later shows in
the view. Sources: mount(2), unshare(2), Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
from typing import Iterator

from replication.secondary.clones import removal
from replication.secondary.mirror import dress

_PREFIX = b".seamark-view."
_ID = re.compile(rb"[0-9]{1,20}\.[0-9]{1,20}")
_LAYERS = b"layers"
_LAYER_NAMES = (b"upper", b"work", b"root")
_NEW_NAMESPACE = 0x20000
_PRIVATE = 1 << 18 | 1 << 14  # MS_PRIVATE | MS_REC
_PLAIN = 2 | 4  # MS_NOSUID | MS_NODEV
_DETACH = 2 | 8  # MNT_DETACH | UMOUNT_NOFOLLOW
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)


def possible(root_fd: int) -> bool:
    """Whether a view of this root can be mounted by us."""
    with open("/proc/filesystems") as file:
        known = any(line.split()[-1:] == ["overlay"] for line in file)
    return known and os.geteuid() == 0 and os.stat("..", dir_fd=root_fd).st_dev == os.fstat(root_fd).st_dev


def mount(root_fd: int, home_fd: int, *, stays: bool) -> bytes:
    """Mount a view; its path. Raises OSError.

    Unless it ``stays``, only this process and its children see it, and it ends with them.
    """
    id_ = b"%d.%d" % (os.getpid(), os.fstat(home_fd).st_ino)
    fd = os.open(_LAYERS, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=home_fd)
    try:
        os.write(fd, id_)
    finally:
        os.close(fd)
    parent_fd = os.open("..", _DIR, dir_fd=root_fd)
    try:
        os.mkdir(_PREFIX + id_, 0o700, dir_fd=parent_fd)
        at = os.open(_PREFIX + id_, _DIR, dir_fd=parent_fd)
    finally:
        os.close(parent_fd)
    fds = []
    try:
        for name in _LAYER_NAMES:
            os.mkdir(name, 0o700, dir_fd=at)
        base = os.fsencode(os.readlink("/proc/self/fd/{}".format(at)))
        root = os.fsencode(os.readlink("/proc/self/fd/{}".format(root_fd)))
        if not stays:
            _check(_libc.unshare(_NEW_NAMESPACE), "unshare")
            _check(_libc.mount(b"none", b"/", None, _PRIVATE, None), "/")
        # By descriptors, whose names need no escapes; opened here, since layers are of one's own namespace.
        fds = [os.open(path, _DIR) for path in (root, *(base + b"/" + name for name in _LAYER_NAMES))]
        meant = [os.fstat(root_fd), *(os.stat(name, dir_fd=at) for name in _LAYER_NAMES)]
        if not all(os.path.samestat(os.fstat(fd), found) for fd, found in zip(fds, meant)):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), os.fsdecode(root))
        dress(fds[1], root_fd, os.fstat(root_fd))  # the view's root looks as the upper one
        # Directories of the root may be renamed, and links stay links.
        options = "lowerdir=/proc/self/fd/{},upperdir=/proc/self/fd/{},workdir=/proc/self/fd/{},redirect_dir=on,index=on"
        words = options.format(*fds[:3]).encode()
        where = b"/proc/self/fd/%d" % fds[3]
        _check(_libc.mount(b"overlay", where, b"overlay", _PLAIN, words), os.fsdecode(base))
        return base + b"/root"
    finally:
        for each in (*fds, at):
            os.close(each)


def unmount(kind_fd: int, home_fd: int) -> Iterator[int]:
    """End a view, and remove its layers; nothing happens where there are none. Raises OSError.

    Their name is put together here, whatever the file says: nothing else beside the root is touched.
    """
    try:
        fd = os.open(_LAYERS, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=home_fd)
    except FileNotFoundError:
        return
    with open(fd, "rb") as file:
        id_ = file.read(100)
    if not _ID.fullmatch(id_):
        return
    # .seamark/views, .seamark, the root, and what it lies in
    parent_fd = os.open("../../..", _DIR, dir_fd=kind_fd)
    try:
        at = os.open(_PREFIX + id_, _DIR, dir_fd=parent_fd)
        try:
            if os.fstat(at).st_uid != os.geteuid():
                return  # somebody else's, put in its place
            mounted = os.fsencode(os.readlink("/proc/self/fd/{}".format(at))) + b"/root"
        finally:
            os.close(at)
        _libc.umount2(mounted, _DETACH)  # which need not be: it ended with its process
        yield from removal(parent_fd, _PREFIX + id_)
    except FileNotFoundError:
        return
    finally:
        os.close(parent_fd)
