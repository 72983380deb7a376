"""`python -m seamark`."""

from __future__ import annotations

import sys

try:
    from seamark.cli import main
except KeyboardInterrupt:  # Ctrl-C before anything has begun is no reason for a traceback
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
