"""`python -m encore`."""

from __future__ import annotations

import sys

from encore.cli import main

if __name__ == "__main__":
    sys.exit(main())
