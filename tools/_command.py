#!/usr/bin/env python
"""Run the command with this script's name. The other scripts in this folder are links to this file."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone's package, installed or not
try:
    from denseclip_d2.cli import main
except ImportError as error:
    reason = f" ({error.__cause__})" if error.__cause__ else ""
    sys.exit(f"error: denseclip_d2 cannot be imported: {error}{reason}\n       -> `make install`")

if __name__ == "__main__":
    main(Path(__file__).stem)
