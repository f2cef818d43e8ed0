"""Everything a worker would import before its first step: a warm process imports this, then forks.

Importing it starts no thread (with OMP_NUM_THREADS=1) and touches no GPU, so that the process can be forked.
"""

import importlib

MODULES = (
    "torch",
    # The first optimizer of a process would import it, for more than a second.
    "torch._dynamo",
    "torch.distributed",
    "torch.distributed.checkpoint",
    "torch.utils.data",
    "distroml.runtime.checkpoint",
    "distroml.runtime.data",
    "distroml.runtime.elastic",
    "distroml.runtime.parallel",
    "distroml.runtime.trainer",
)

for _name in MODULES:
    importlib.import_module(_name)
