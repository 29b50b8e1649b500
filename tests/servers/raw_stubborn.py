"""Reads no input and ignores every polite signal, and so does its child. Tells both pids once they are ready.

Arguments, in any combination: `leave` lets the parent end at once, as launchers sometimes do, and the child go on;
`quiet` lets the child hold none of the pipes.
"""

import json
import os
import signal
import subprocess
import sys

for polite in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(polite, signal.SIG_IGN)

arguments = sys.argv[1:]
if "child" in arguments:
    print("ready", file=sys.stderr, flush=True)
    os.close(2)
    while True:
        signal.pause()

pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL} if "quiet" in arguments else {}
child = subprocess.Popen([sys.executable, "-S", __file__, "child"], stderr=subprocess.PIPE, **pipes)
child.stderr.readline()
print(json.dumps({"jsonrpc": "2.0", "method": "pids", "params": [os.getpid(), child.pid]}), flush=True)
while "leave" not in arguments:
    signal.pause()
os._exit(0)
