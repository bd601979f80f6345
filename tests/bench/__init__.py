"""Tests of bench/: what its figures mean, and that its load counts right."""

import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parent.parent.parent / "bench"
if str(BENCH) not in sys.path:  # bench/ holds programs, and the package they are made of
    sys.path.insert(0, str(BENCH))
