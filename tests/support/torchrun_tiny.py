"""Start the runs of tiny.py on several processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

TINY = Path(__file__).with_name("tiny.py")


def torchrun(root, run: dict, world: int) -> subprocess.Popen:
    path = root / "run.json"
    path.write_text(json.dumps([run]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        str(world),
        "--master-port",
        str(port),
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(p) for p in (TINY.parent, TINY.parents[2] / "src")),
        "OMP_NUM_THREADS": "1",
        "LOWMEM_TIMEOUT": "20",
    }
    return subprocess.Popen(
        [*command, str(TINY), str(root), str(path)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
