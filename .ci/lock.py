"""Prints requirements.lock from pip's own installation report: python .ci/lock.py REPORT > requirements.lock.

Local build labels (torch's +cpu) and the CUDA runtime packages are left out: pip adds those that the
machine's torch asks for.
"""

import json
import re
import sys
from pathlib import Path

CUDA = re.compile(r"nvidia-|cuda-|triton")

report = json.loads(Path(sys.argv[1]).read_text())
pins = {}
for item in report["install"]:
    name = re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower()
    if name != "orrery" and not CUDA.match(name):
        pins[name] = item["metadata"]["version"].split("+")[0]
print("# written by `make lock`: what pip chose for orrery[recon3d,dev]")
print("\n".join(f"{name}=={version}" for name, version in sorted(pins.items())))
