"""systemd units of a node: the monitor, which runs everything else, with as few rights as replication needs.

Sources: systemd.service(5), systemd.exec(5), sd_notify(3).
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

NAME = "seamark.service"

_COMMON = """\
# Written by 'seamark install-units'; yours to change with: systemctl {user}edit {name}
[Unit]
Description=Seamark: replication of this node's sessions
Wants=network-online.target
After=network-online.target remote-fs.target
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart={command}
ExecReload=/bin/kill -HUP $MAINPID
Restart=always
RestartSec=5
# The monitor says every few seconds that it goes round. What it keeps alive it watches itself.
WatchdogSec=60
# The monitor ends its own processes in order: tasks finish, or are given back.
KillMode=mixed
TimeoutStopSec=90
UMask=0077
LimitNOFILE=65536
NoNewPrivileges=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictRealtime=yes
LockPersonality=yes
SystemCallArchitectures=native
"""

_SYSTEM = """\
StateDirectory=seamark
StateDirectoryMode=0700
ConfigurationDirectory=seamark
# fanotify and file handles (SYS_ADMIN, DAC_READ_SEARCH), and keeping owners, modes, devices and capabilities of what
# is replicated to a directory of this machine.
CapabilityBoundingSet=CAP_SYS_ADMIN CAP_DAC_READ_SEARCH CAP_DAC_OVERRIDE CAP_CHOWN CAP_FOWNER CAP_FSETID CAP_MKNOD \\
    CAP_SETFCAP CAP_SYS_RESOURCE CAP_KILL
ProtectSystem=full
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
"""

_INSTALL = """
[Install]
WantedBy={target}
"""


class Unit(NamedTuple):
    """A file for systemd, and where it goes."""

    path: Path
    text: str


def monitor_unit(*, system: bool, options: tuple[str, ...] = ()) -> Unit:
    """The monitor's unit, for the system (which needs root) or for this user. ``options``: more words of its command."""
    words = [*_this_program(), "monitor", *options]
    command = " ".join(_quoted(word) for word in words)
    text = _COMMON.format(command=command, name=NAME, user="" if system else "--user ")
    if system:
        text += _SYSTEM
    text += _INSTALL.format(target="multi-user.target" if system else "default.target")
    return Unit(_directory(system=system) / NAME, text)


def _directory(*, system: bool) -> Path:
    if system:
        return Path("/etc/systemd/system")
    base = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".config") / "systemd" / "user"


def _this_program() -> list[str]:
    """How to start what is running now, from anywhere: the checkout's program, or the installed one."""
    checkout = Path(__file__).resolve().parents[1] / "bin" / "seamark"
    if checkout.is_file():
        return [str(checkout)]
    installed = Path(sys.executable).with_name("seamark")
    return [str(installed)] if installed.is_file() else [sys.executable, "-m", "seamark"]


def _quoted(word: str) -> str:
    """A word of a command line: systemd knows a shell's quotes, and gives $ and % meanings of their own."""
    return shlex.quote(word.replace("%", "%%").replace("$", "$$"))
