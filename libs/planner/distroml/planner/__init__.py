"""Chooses how to spread a model over machines: topology, cost, memory, search, explanation. Pure."""

from distroml.planner.plan import AXES, RECOMPUTE, SCHEDULES, Plan, PlanRefused
from distroml.planner.profile import MeasuredUnit, ModelProfile, Saved, Unit, Work

__all__ = [
    "AXES",
    "RECOMPUTE",
    "SCHEDULES",
    "MeasuredUnit",
    "ModelProfile",
    "Plan",
    "PlanRefused",
    "Saved",
    "Unit",
    "Work",
]
