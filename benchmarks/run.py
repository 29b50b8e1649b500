"""`uv run benchmarks/run.py`: the same as `python -m benchmarks`, from any directory."""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    runpy.run_module("benchmarks", run_name="__main__", alter_sys=True)
