"""Seconds: of computation by roofline or measurement, of collectives by level, of a pipeline by schedule."""
