"""Where telemetry meets the outside: its SQLite file, the event log, the scheduler."""
