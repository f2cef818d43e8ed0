"""The node agent: makes the scheduler's desired state so, and reports what it sees."""
