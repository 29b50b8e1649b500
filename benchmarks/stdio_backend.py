"""A backend over stdio, as cheap as a Python process can be: reads a line, writes a line. A process of its
own.

Started by the fronts, or by the benchmark itself for direct calls. It ends when its input does.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

from benchmarks.answers import Answers, Era


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--era", type=Era, default=Era.HANDSHAKE)
    parser.add_argument("--tools", type=int, default=1)
    parser.add_argument("--cpus", default="", help="cores to run on, such as 1,2; a front would hand down its own")
    parser.add_argument("--hang", action="store_true", help="read everything, answer nothing")
    options = parser.parse_args()
    if options.cpus and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in options.cpus.split(",")})
    answers = Answers(options.era, options.tools)
    for line in sys.stdin.buffer:
        if options.hang:
            continue
        answer = answers.to(json.loads(line))
        if answer is not None:
            sys.stdout.buffer.write(answer + b"\n")
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
