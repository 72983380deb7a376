"""How a host is reached: the user's ssh configuration, as the system's own ssh understands it.

``ssh -G`` prints the configuration that ssh would use, with Include, Match and tokens applied. So
the connection that we make and the ssh that rsync and tar start agree about host, port, keys and
known hosts, without a second reader of ssh_config.
"""

from __future__ import annotations

import getpass
import os
import re
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from replication.errors import UsageError
from replication.remote.errors import RemoteError, Unreachable
from replication.remote.ssh_words import as_arguments, check_options
from replication.remote.target import Target

_DEFAULT_KNOWN_HOSTS = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2", "/etc/ssh/ssh_known_hosts")
_DEFAULT_IDENTITIES = ("~/.ssh/id_ed25519", "~/.ssh/id_ecdsa", "~/.ssh/id_rsa")


@dataclass(frozen=True, slots=True, kw_only=True)
class SshOptions:
    """What a session says about ssh. Times in seconds.

    ``known_hosts_file`` is the session's own, read beside the user's and the system's, and the one
    that accepted keys go to. ``config_file`` replaces ~/.ssh/config and /etc/ssh/ssh_config.
    ``extra``: options of ssh_config, ``Keyword=value``, of those that ssh_words.py allows.
    ``run_dir`` holds the sockets of shared connections; without it every rsync makes its own.
    ``answer_timeout_s``: a far side that says nothing for so long while asked is taken for dead.
    ``gated``: ``identity`` is a key that starts our gate there (secondary/gate.py) and nothing else.
    ``ask_password`` is given ``user@host`` when no key is let in; without it nothing is asked.
    """

    port: int | None = None
    identity: Path | None = None
    accept_new_host_key: bool = False
    config_file: Path | None = None
    extra: tuple[str, ...] = ()
    known_hosts_file: Path | None = None
    run_dir: Path | None = None
    connect_timeout_s: float = 20.0
    answer_timeout_s: float = 120.0
    gated: bool = False
    ask_password: Callable[[str], str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A host with all configuration applied."""

    host: str
    hostname: str
    port: int
    user: str
    key_name: str  # the name its key is known by
    key_port: int  # 22 where an alias stands for host and port
    identities: tuple[Path, ...]
    use_agent_keys: bool  # all of the agent's, not just those named by ``identities``
    agent_socket: str | None
    known_hosts: tuple[Path, ...]
    proxy_command: str | None
    said: dict[str, str]  # the session's own options of ssh_config, with lists as ssh understands them

    def __str__(self) -> str:
        return self.hostname if self.port == 22 else f"{self.hostname} port {self.port}"


def resolve(target: Target, options: SshOptions) -> Endpoint:
    """Apply the ssh configuration to a remote target. Raises UsageError for what ssh cannot read."""
    if target.host is None:
        raise ValueError("a local target has no endpoint")
    if options.identity is not None and not options.identity.is_file():
        raise UsageError(f"identity file {options.identity} does not exist")
    config = _ssh_config(target, options)
    hostname = _one(config, "hostname", target.host)
    port = int(_one(config, "port", str(options.port or 22)))
    user = _one(config, "user", target.user or getpass.getuser())
    alias = _one(config, "hostkeyalias", "")
    given = (options.identity,) if options.identity else ()
    tokens = {"%%": "%", "%h": hostname, "%p": str(port), "%n": target.host, "%r": user}
    configured = [name for name in config.get("identityfile", _DEFAULT_IDENTITIES) if name.lower() != "none"]
    agent = _one(config, "identityagent", "SSH_AUTH_SOCK")
    return Endpoint(
        host=target.host,
        hostname=hostname,
        port=port,
        user=user,
        key_name=alias or hostname,
        key_port=22 if alias else port,
        identities=given or _paths([_expand(name, tokens) for name in configured]),
        use_agent_keys=not given and _one(config, "identitiesonly", "no") != "yes",
        agent_socket=_agent_socket(agent),
        known_hosts=known_hosts_files(config, options),
        proxy_command=_proxy(config, options, tokens),
        said={name: _one(config, name, value) for name, value in check_options(options.extra).items()},
    )


def known_hosts_files(config: dict[str, list[str]], options: SshOptions) -> tuple[Path, ...]:
    """Every file that may vouch for a host: the session's, the user's, the system's."""
    files: list[str] = []
    for key in ("userknownhostsfile", "globalknownhostsfile"):
        for line in config.get(key, []):
            # ssh prints the names without quotes: one with a space cannot be told from two.
            files += [line] if Path(line).exists() else line.split()
    if not config:
        files = list(_DEFAULT_KNOWN_HOSTS)
    own = (options.known_hosts_file,) if options.known_hosts_file else ()
    return own + _paths([name for name in files if name.lower() != "none"])


def _ssh_config(target: Target, options: SshOptions) -> dict[str, list[str]]:
    """``ssh -G`` as {lower-case keyword: values}; empty where there is no ssh (the defaults then hold)."""
    command = ["ssh", "-G", *config_arguments(options), *as_arguments(options.extra)]
    if options.port is not None:
        command += ["-p", str(options.port)]
    if target.user is not None:
        command += ["-l", target.user]
    try:
        done = subprocess.run(
            [*command, "--", target.host or ""], stdin=subprocess.DEVNULL, capture_output=True, timeout=20
        )
    except FileNotFoundError:
        return {}
    except subprocess.TimeoutExpired:
        raise Unreachable(
            "'ssh -G' did not finish in 20 s: look at Match exec in the ssh configuration"
        ) from None
    if done.returncode:
        reason = "; ".join(line.strip() for line in done.stderr.decode("utf-8", "replace").splitlines())
        raise UsageError(f"ssh does not accept its configuration for {target.host}: {reason}")
    config: dict[str, list[str]] = {}
    for line in done.stdout.decode("utf-8", "surrogateescape").splitlines():
        key, _, value = line.partition(" ")
        config.setdefault(key.lower(), []).append(value)
    return config


def config_arguments(options: SshOptions) -> list[str]:
    """How ssh is told which configuration to read."""
    return ["-F", str(options.config_file)] if options.config_file else []


def _one(config: dict[str, list[str]], key: str, default: str) -> str:
    values = config.get(key)
    return values[0] if values and values[0].lower() != "none" else default


def _paths(names: list[str]) -> tuple[Path, ...]:
    return tuple(Path(os.path.expanduser(name)) for name in dict.fromkeys(names))


def _agent_socket(configured: str) -> str | None:
    if configured == "SSH_AUTH_SOCK" or configured.startswith("$"):
        return os.environ.get(configured.removeprefix("$").strip("{}"))
    return os.path.expanduser(configured)


def _expand(text: str, tokens: dict[str, str]) -> str:
    """ssh's percent tokens; %d and %u are of this side."""
    here = {"%d": os.path.expanduser("~"), "%u": getpass.getuser()}
    return re.sub("%.", lambda token: tokens.get(token[0], here.get(token[0], token[0])), text)


def _proxy(config: dict[str, list[str]], options: SshOptions, tokens: dict[str, str]) -> str | None:
    """A shell command whose standard streams lead to the host, or None for a plain connection."""
    command = _one(config, "proxycommand", "")
    if command:
        return _expand(command, tokens)
    jumps = _one(config, "proxyjump", "")
    if not jumps:
        return None
    *before, last = jumps.split(",")
    if last.startswith("-"):
        raise RemoteError(f"ProxyJump {last!r} is not a host")
    parts = ["ssh", *config_arguments(options), "-oBatchMode=yes"]
    if before:
        parts += ["-J", ",".join(before)]
    hostname, port = tokens["%h"], tokens["%p"]
    destination = f"[{hostname}]:{port}" if ":" in hostname else f"{hostname}:{port}"
    return shlex.join([*parts, "-W", destination, "--", _jump_url(last)])


def _jump_url(jump: str) -> str:
    """``ssh://`` is how ssh takes a port within a destination."""
    return jump if jump.startswith("ssh://") else f"ssh://{jump}"
