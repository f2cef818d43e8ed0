"""Small models and machines for tests."""

from distroml.planner import (
    Device,
    Level,
    ModelProfile,
    Saved,
    Topology,
    Training,
    Transformer,
    Unit,
    Work,
    transformer_profile,
)

GIB = 1 << 30


def device(memory_gib=16.0, **values):
    plain = {
        "name": "box",
        "flops": {"bf16": 100e12, "fp32": 50e12},
        "memory_bytes": memory_gib * GIB,
        "memory_bytes_per_s": 1e12,
    }
    return Device(**(plain | values))


def machines(nodes=2, per_node=4, inner=100e9, outer=10e9, **values):
    return Topology(
        device=device(**values),
        levels=(
            Level(name="node", extent=per_node, latency_s=2e-6, bytes_per_s=inner),
            Level(name="cluster", extent=nodes, latency_s=1e-5, bytes_per_s=outer),
        ),
    )


def gpt(layers=8, hidden=1024, heads=8, seq=512, **values):
    return transformer_profile(
        Transformer(hidden=hidden, layers=layers, heads=heads, vocab=8192, seq=seq, **values), "bf16"
    )


TRAINING = Training(precision="bf16", master_weights=True)


def chain(times, *, saved=0.0, parameters=1000, before=False, after=False):
    """A profile of units that take `times` seconds forward and twice that backward on `device()`."""

    def unit(number, kind, seconds):
        rate = 50e12 * 0.8
        return Unit(
            name=f"{kind}{number}",
            kind=kind,
            shape=f"{kind}{seconds}",
            parameters=parameters,
            forward=Work(flops=seconds * rate),
            backward=Work(flops=2 * seconds * rate),
            saved={kind: Saved(whole_bytes=saved) for kind in ("none", "selective", "full")},
            output_bytes=1.0,
        )

    units = [unit(n, "block", seconds) for n, seconds in enumerate(times)]
    if before:
        units.insert(0, unit(0, "before", times[0]))
    if after:
        units.append(unit(0, "after", times[0]))
    return ModelProfile(name="chain", units=tuple(units), tp_limits={})
