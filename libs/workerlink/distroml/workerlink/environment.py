"""The environment variables by which an agent tells a worker who it is.

The first group is torchrun's, so that any torchrun-style script runs unchanged; the second is ours.
"""

from __future__ import annotations

RANK = "RANK"
LOCAL_RANK = "LOCAL_RANK"
WORLD_SIZE = "WORLD_SIZE"
LOCAL_WORLD_SIZE = "LOCAL_WORLD_SIZE"
GROUP_RANK = "GROUP_RANK"
GROUP_WORLD_SIZE = "GROUP_WORLD_SIZE"
MASTER_ADDR = "MASTER_ADDR"
MASTER_PORT = "MASTER_PORT"
# torch reads these two: the store is the agent's, who opens a fresh one for each generation, since torch 2.15 puts
# no prefix by the restart count before its keys.
TORCHELASTIC_USE_AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"
TORCHELASTIC_RESTART_COUNT = "TORCHELASTIC_RESTART_COUNT"
TORCHELASTIC_MAX_RESTARTS = "TORCHELASTIC_MAX_RESTARTS"
TORCHELASTIC_RUN_ID = "TORCHELASTIC_RUN_ID"
# CUDA reads these two when a process first uses a GPU.
CUDA_VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
CUDA_DEVICE_ORDER = "CUDA_DEVICE_ORDER"

LINK_SOCKET = "DISTROML_LINK"
WORKER = "DISTROML_WORKER"
INCARNATION = "DISTROML_INCARNATION"
JOB = "DISTROML_JOB"
PROJECT = "DISTROML_PROJECT"
ATTEMPT = "DISTROML_ATTEMPT"
NODE = "DISTROML_NODE"
GENERATION = "DISTROML_GENERATION"
# Which back end carries the collectives, where the job says so: it decides how ranks are started.
BACKEND = "DISTROML_BACKEND"
# Where checkpoints go: `file:///path` or `s3://bucket/prefix`.
OBJECTS = "DISTROML_OBJECTS"
# The job's compression of gradients, such as `auto` or `powersgd:4`; absent for none. A script's own choice wins.
COMPRESS = "DISTROML_COMPRESS"
# After how many steps of their own the job's replicas meet; absent where they sum gradients at every step. A script's
# own choice wins.
SYNC_EVERY = "DISTROML_SYNC_EVERY"
# `STEP:MANIFEST_HASH` of the checkpoint to start from, absent for none; plain scripts may read it too.
RESTORE = "DISTROML_RESTORE"
# W3C trace context of the span in which the first generation formed; absent where nobody traces.
TRACEPARENT = "TRACEPARENT"
# "1" in a job's environment: a span for every step, not only for the first of each generation.
TRACE_STEPS = "DISTROML_TRACE_STEPS"
