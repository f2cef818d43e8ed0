"""The main job as a demonstration: trains, loses a worker, recovers, replays, and proves each of it."""
