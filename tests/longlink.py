"""A long link: two network namespaces with an emulator between them, and an sshd on the far side.

The emulator is a script with the commands ``up DELAY_MS RATE_MBIT QUEUE_KB LOSS_PPM`` and ``down`` that keeps ``a.pid`` and
``b.pid``, processes that hold the namespaces, in the directory WAN. Needs root.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.hosts import inside
from tests.sshd import SshServer

FAR = "10.99.0.2"
_REPOSITORY = Path(__file__).resolve().parents[1]


def emulator() -> Path | None:
    """The script: SEAMARK_WAN names it, or it lies beside the checkout; None where there is none."""
    said = os.environ.get("SEAMARK_WAN")
    path = Path(said) if said else _REPOSITORY.parent / "shared/wan/wan.sh"
    return path.absolute() if path.is_file() else None


class LongLink:
    """A link that is up until ``down``. ``prefix`` takes a command to the primary's side."""

    def __init__(
        self, script: Path, directory: Path, delay_ms: int, rate_mbit: int, queue_kb: int, loss_ppm: int = 0
    ) -> None:
        self._script, self._directory = script, directory
        self._command("up", str(delay_ms), str(rate_mbit), str(queue_kb), str(loss_ppm))
        self.prefix = ("nsenter", "-n", "-t", self.holder("a"))

    def _command(self, *words: str) -> None:
        environment = {**os.environ, "WAN": str(self._directory)}
        subprocess.run([self._script, *words], check=True, stdout=subprocess.DEVNULL, env=environment)

    def holder(self, side: str) -> str:
        """The process that holds the namespace of a side."""
        return (self._directory / f"{side}.pid").read_text().strip()

    def down(self) -> None:
        self._command("down")


class FarServer(SshServer):
    """An sshd on the far side of the link."""

    def __init__(self, link: LongLink, directory: Path) -> None:
        self._link = link
        super().__init__(directory, ListenAddress=FAR)

    def trust(self) -> None:
        self.host = FAR
        super().trust()

    def start(self) -> None:
        with inside(self._link.holder("b")):
            super().start()
