"""Pure policies: no clock, randomness, I/O or environment."""
