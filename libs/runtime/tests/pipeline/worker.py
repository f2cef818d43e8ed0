"""The warm pool's processes: `python worker.py STORE FD…` imports once and forks one process for each socket."""

import gc
import json
import os
import socket
import sys
import traceback
import warnings
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
warnings.simplefilter("ignore")

import cases  # noqa: E402
import torch.distributed as dist  # noqa: E402
import transformers.models.llama.modeling_llama  # noqa: E402, F401

import distroml.runtime.warm  # noqa: E402, F401


def serve(rank: int, size: int, store: str, connection: socket.socket) -> None:
    timeout = timedelta(seconds=20)
    dist.init_process_group("gloo", store=dist.FileStore(store, size), rank=rank, world_size=size, timeout=timeout)
    pairs = [dist.new_group(ranks, timeout=timeout) for ranks in ([0, 1], [2, 3])]
    groups = {2: pairs[rank // 2], 4: dist.new_group([0, 1, 2, 3], timeout=timeout)}
    # Apart: a text stream for both forgets what it has read ahead when it writes.
    cases_in, stream = connection.makefile("r"), connection.makefile("w")
    print(json.dumps({"ready": rank}), file=stream, flush=True)
    for line in cases_in:
        case = json.loads(line)
        try:
            answer = getattr(cases, case["run"])(case, groups[case["pp"]])
        except BaseException as error:
            answer = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
        print(json.dumps(answer), file=stream, flush=True)
        if answer.get("leave"):
            os._exit(1)


def main() -> None:
    store, connections = sys.argv[1], [socket.socket(fileno=int(number)) for number in sys.argv[2:]]
    gc.collect()
    gc.freeze()
    children: list[int] = []
    for rank, connection in enumerate(connections):
        child = os.fork()
        if not child:
            for other in connections:
                if other is not connection:
                    other.close()
            serve(rank, len(connections), store, connection)
            os._exit(0)  # connections of a case that was meant to break are not waited for
        children.append(child)
    for connection in connections:
        connection.close()
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
