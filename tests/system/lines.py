"""How a run ended, as a person sees it."""

from __future__ import annotations


def ended(run, code, *words):
    """The run ended by itself with this exit code and one clear line that has all of ``words``; the line."""
    lines = said(run)
    assert run.process.returncode == code, run.report()
    ours = [line for line in lines if line.startswith("seamark: ")]
    assert len(ours) == 1, lines
    for word in words:
        assert word in ours[0], (word, ours[0])
    assert all(line == ours[0] for line in lines), lines
    return ours[0]


def said(run):
    """What was printed on standard error; a traceback there is a bug, whatever else is right."""
    run.stderr.flush()
    run.stderr.seek(0)
    text = run.stderr.read().decode(errors="replace")
    run.stderr.truncate(0)
    assert "Traceback" not in text, text
    for message in run.of_type("log") + run.of_type("error"):
        assert "Traceback" not in message.get("message", ""), message
    return text.splitlines()


def logged(run, *words):
    """Whether one message of the log has all of these words."""
    return any(all(word in m.get("message", "") for word in words) for m in run.of_type("log"))
