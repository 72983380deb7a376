"""How much each role logs is a setting that takes effect while it runs."""

from __future__ import annotations

import os

import pytest

# What a role says at the level debug only.
SAYS = {
    "agent": "position ",
    "control": "/E:",
    "data": "/D:stream:",
    "beat": "sent scheduler.jobs.",
    "secondary": "observe took ",
}


def said(place, words):
    lines = [line for path in place.state.glob("logs/*.log") for line in path.read_text().splitlines()]
    return any(" DEBUG " in line and words in line for line in lines)


@pytest.mark.slow
def test_each_role_is_changed_while_it_runs(place):
    (place.primary / "a").write_text("a")
    with place.run() as run:
        run.wait_idle()
        (path,) = place.state.glob("sessions/*/session.toml")
        plain = path.read_text()
        for role, words in SAYS.items():
            assert not said(place, words), role
            aside = path.with_suffix(".aside")
            aside.write_text(f'{plain}\n[log]\n{role} = "debug"\n')
            aside.replace(path)

            def changed(words=words):
                (place.primary / "large").write_bytes(os.urandom(5 << 20))
                return said(place, words)

            run.wait_for(changed, f"{role} to say more")
        assert run.stop() == 0
