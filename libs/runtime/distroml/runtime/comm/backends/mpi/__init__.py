"""MPI as a back end of `torch.distributed`: mpi4py below, torch's own groups and sub-groups above.

library.py   loads MPI once per process, and ends it so that no rank waits for one that failed
farewell.py  ranks tell one another that their program ended
kinds.py     which MPI type moves a tensor and which operation reduces it
engine.py    the only caller of MPI after set-up: starts, tests, and gives up at the deadline
posting.py   a group, and operations on it
reductions.py, collectives.py  what torch calls on it
backend.py   opens a world
"""
