"""Reasons: CamelCase constants, stable across releases, each the answer to a "why" or a "why not"."""

from __future__ import annotations

# Why a job waits.
WAITING_FOR_SLOTS = "WaitingForSlots"
WAITING_FOR_RESOURCES = "WaitingForResources"
BEHIND_OTHERS = "BehindOthers"
EXCEEDS_CAPACITY = "ExceedsCapacity"
NO_NODES = "NoNodes"
PAUSED = "Paused"
EVALUATING = "Evaluating"
STARTING = "Starting"

# Why an attempt was taken from a job.
NODE_LOST = "NodeLost"
SLOTS_LOST = "SlotsLost"
STOPPED_UNEXPECTEDLY = "StoppedUnexpectedly"
SETUP_FAILED = "SetupFailed"

# Why a job ended.
FAILURE_BUDGET_SPENT = "FailureBudgetSpent"
PREEMPTION_BUDGET_SPENT = "PreemptionBudgetSpent"

# Why a command is refused.
NO_SUCH_JOB = "NoSuchJob"
JOB_FINISHED = "JobFinished"
JOB_CANCELLING = "JobCancelling"
NOT_PAUSED = "NotPaused"
STILL_PAUSING = "StillPausing"
NOT_QUEUED = "NotQueued"
NOT_RESIZING = "NotResizing"
BAD_GANG = "BadGang"
BAD_WORKER_RANGE = "BadWorkerRange"
NO_SUCH_NODE = "NoSuchNode"
NODE_IS_LOST = "NodeIsLost"
SLOT_TAKEN = "SlotTaken"
SLOT_NOT_OFFERED = "SlotNotOffered"
NOT_HELD = "NotHeld"
STILL_RUNNING = "StillRunning"

# Why an attempt is told to stop.
STOP_CANCELLED = "Cancelled"
STOP_PAUSED = "Paused"
STOP_PREEMPTED = "Preempted"
STOP_FINISHED = "Finished"
STOP_FAILED = "Failed"
STOP_RESIZED = "Resized"
