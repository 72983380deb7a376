"""The system's own ssh, for rsync and tar, under the same trust as our control connection."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from replication.private import private_dir
from replication.remote.endpoint import SshOptions, config_arguments, resolve
from replication.remote.errors import RemoteError
from replication.remote.ssh_words import as_arguments

if TYPE_CHECKING:
    from replication.remote.target import Target

# sun_path has 108 bytes with its final NUL; while it binds, ssh adds a dot and 16 letters to the name.
_MAX_SOCKET_PATH = 108 - 1 - 17
_PERSIST_S = 60
_ALIVE_COUNT = 4


def ssh_command(target: Target, options: SshOptions) -> list[str]:
    """ssh and its options, up to and without the destination (``target.login``).

    Never asks anything, accepts only known host keys, and shares one connection per process family
    when ``options.run_dir`` is given. Raises UsageError, RemoteError.
    """
    endpoint = resolve(target, options)
    command = ["ssh", *config_arguments(options), "-oBatchMode=yes", "-oStrictHostKeyChecking=yes"]
    # ssh goes by what it is told first.
    command += as_arguments(options.extra)
    command += [f"-oUserKnownHostsFile={' '.join(_config_word(path) for path in endpoint.known_hosts)}"]
    command += [f"-oConnectTimeout={max(1, int(options.connect_timeout_s))}"]
    # A shared connection that is frozen must go before rsync's own time is over, or the next rsync gets it again.
    interval = max(1, round(options.answer_timeout_s / 2 / _ALIVE_COUNT))
    command += [f"-oServerAliveInterval={interval}", f"-oServerAliveCountMax={_ALIVE_COUNT}"]
    command += [
        "-oForwardAgent=no",
        "-oForwardX11=no",
        "-oClearAllForwardings=yes",
        "-oPermitLocalCommand=no",
    ]
    command += ["-oRequestTTY=no", "-oRemoteCommand=none", "-oEscapeChar=none", "-oLogLevel=ERROR"]
    if options.port is not None:
        command += [f"-p{options.port}"]
    if options.identity is not None:
        command += ["-oIdentitiesOnly=yes", f"-oIdentityFile={_config_word(options.identity)}"]
    if options.run_dir is None:
        return [*command, "-oControlMaster=no", "-oControlPath=none"]
    socket_path = control_path(target, options)
    return [
        *command,
        "-oControlMaster=auto",
        f"-oControlPath={_config_word(socket_path)}",
        f"-oControlPersist={_PERSIST_S}",
    ]


def control_path(target: Target, options: SshOptions) -> Path:
    """Where the shared connection's socket is: in the run directory, or, where that has too long a
    name for a socket, in a private directory of the system's temporary one.

    Raises RemoteError when such a directory is not ours alone.
    """
    if options.run_dir is None:
        raise ValueError("no run directory, no shared connection")
    told = f"{target.login}\0{options.port}\0{options.identity}\0{options.config_file}\0{options.extra}"
    name = hashlib.blake2b(os.fsencode(told), digest_size=6).hexdigest()
    directory = options.run_dir.absolute()
    if len(os.fsencode(directory / name)) > _MAX_SOCKET_PATH:
        key = hashlib.blake2b(os.fsencode(directory), digest_size=6).hexdigest()
        directory = Path(tempfile.gettempdir()) / f"seamark-{os.getuid()}-{key}"
    if len(os.fsencode(directory / name)) > _MAX_SOCKET_PATH:
        directory = Path("/tmp") / directory.name
    private_dir(directory)
    seen = directory.lstat()
    if not stat.S_ISDIR(seen.st_mode) or seen.st_uid != os.getuid() or seen.st_mode & 0o077:
        raise RemoteError(
            f"{directory} must be a directory of ours with mode 0700; remove it, or mend its mode"
        )
    return directory / name


def close_shared_connection(target: Target, options: SshOptions) -> None:
    """End the shared connection's process, if there is one. Never raises; takes two seconds at most."""
    if options.run_dir is None or not target.is_remote:
        return
    with contextlib.suppress(Exception):
        path = control_path(target, options)
        if path.exists():
            subprocess.run(
                [
                    "ssh",
                    *config_arguments(options),
                    f"-oControlPath={_config_word(path)}",
                    "-Oexit",
                    "--",
                    target.login,
                ],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=10,
            )
            # It answers before it goes.
            deadline = time.monotonic() + 2
            while path.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
        if path.parent != options.run_dir.absolute():
            path.parent.rmdir()


def _config_word(path: Path) -> str:
    """A path as one word of ssh_config: quoted, its percent signs no tokens."""
    text = str(path).replace("%", "%%")
    return '"' + text + '"' if any(c in text for c in " \t'#") else text
