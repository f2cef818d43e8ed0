"""Chooses how to spread a model over machines: topology, cost, memory, search, explanation. Pure.

Machines
    `gpu(name)` and `custom_gpu(...)` give a `Device`; `described(...)` joins devices by nominal figures to a
    `Topology` of `Level`s, `fit_levels(device, levels, samples)` by timed collectives (`Sample`).
Models
    A `ModelProfile` comes from a real module (`distroml.runtime.profile`) or from numbers:
    `transformer_profile(Transformer(...))`. `MeasuredUnit`s are real times that stand instead of the roofline's.
Requests
    `parse_wish("tp=2,microbatch=4")` gives a `Wish`; `read_spec(mapping)` a whole `Spec`; `Training` says how, and
    `compressing("int8")` how gradients are compressed.
Prices
    `price(profile, topology, training, plan)` gives a `Prediction` with its parts, or `Refused` with the reason and
    the nearest plan that works. `Pricer` does so for many plans. `Corrections` are what measurements taught.

Choices
    `search(profile, topology, training, global_batch, wish=...)` gives a `Choice`: the fastest plan that fits, its
    prediction, and the alternatives with reasons. `complete(pricer, wish)` fills in what one wished plan leaves open;
    `judge(pricer, plan)` gives a `Choice` of a plan that was decided on elsewhere.
    `explain(...)` says what binds and what would change; `learn(...)` turns measurements into `Corrections`.

Whatever cannot be read or made raises `PlanRefused`, whose message says what, why and what works.
"""

from distroml.planner.balance import balanced_stages
from distroml.planner.compressing import Candidate, Compressing, Momenta, Tried, compressing
from distroml.planner.explain import Counterfactual, Explainer, Sensitivity, explain
from distroml.planner.feedback import Measurement, contradicts, learn
from distroml.planner.fitting import Sample, fit_level, fit_levels
from distroml.planner.gpus import custom_gpu, gpu, gpu_names
from distroml.planner.judge import judge
from distroml.planner.plan import AXES, RECOMPUTE, SCHEDULES, Axis, Plan, PlanRefused, Recompute, Schedule
from distroml.planner.prediction import BYTES, SECONDS, Compressed, Corrections, Prediction, Refused, Stage
from distroml.planner.pricing import Pricer, price
from distroml.planner.profile import MeasuredUnit, ModelProfile, Saved, Shape, Unit, Work
from distroml.planner.reasons import compression_lines
from distroml.planner.request import Wish, parse_wish, wish_of
from distroml.planner.search import Alternative, Choice, complete, search
from distroml.planner.spec import Spec, read_spec
from distroml.planner.topology import Device, Hop, Level, Route, Topology, described
from distroml.planner.training import Training
from distroml.planner.transformer import Transformer, transformer_profile

__all__ = [
    "AXES",
    "BYTES",
    "RECOMPUTE",
    "SCHEDULES",
    "SECONDS",
    "Alternative",
    "Axis",
    "Candidate",
    "Choice",
    "Compressed",
    "Compressing",
    "Corrections",
    "Counterfactual",
    "Device",
    "Explainer",
    "Hop",
    "Level",
    "MeasuredUnit",
    "Measurement",
    "ModelProfile",
    "Momenta",
    "Plan",
    "PlanRefused",
    "Prediction",
    "Pricer",
    "Recompute",
    "Refused",
    "Route",
    "Sample",
    "Saved",
    "Schedule",
    "Sensitivity",
    "Shape",
    "Spec",
    "Stage",
    "Topology",
    "Training",
    "Transformer",
    "Tried",
    "Unit",
    "Wish",
    "Work",
    "balanced_stages",
    "complete",
    "compressing",
    "compression_lines",
    "contradicts",
    "custom_gpu",
    "described",
    "explain",
    "fit_level",
    "fit_levels",
    "gpu",
    "gpu_names",
    "judge",
    "learn",
    "parse_wish",
    "price",
    "read_spec",
    "search",
    "transformer_profile",
    "wish_of",
]
