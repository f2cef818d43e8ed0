"""Everything a worker would import before its first step: a warm process imports this, then forks.

Importing it starts no thread and touches no GPU, so a process that has imported it can be forked.
"""

import torch
import torch._dynamo  # the first optimizer would import it, for 1.7 s
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.utils.data

import distroml.runtime.checkpoint
import distroml.runtime.data
import distroml.runtime.elastic
import distroml.runtime.parallel
import distroml.runtime.trainer

__all__ = ["dcp", "dist", "distroml", "torch"]
