"""What somebody else might do at a certain moment, done by a hook that Python itself loads in each process of a run.

The program knows nothing of it.
"""

from __future__ import annotations

import textwrap

_FRAME = """
import os, signal, sys
if "-c" not in sys.argv:
    try:
        import {module} as module
    except ImportError:
        pass
    else:
{code}
"""


def hook(base, module, code):
    """A directory for ``python_path``: ``code`` changes a ``module`` before it is used."""
    (base / "hook").mkdir()
    text = _FRAME.format(module=module, code=textwrap.indent(textwrap.dedent(code), " " * 8))
    (base / "hook" / "sitecustomize.py").write_text(text)
    return [base / "hook"]
