"""What could be split in a block, and the ways to try: columns that feed rows, their layouts, counts to be divided."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

from torch import nn

from distroml.runtime.parallel.tensor.layout import Layout
from distroml.runtime.parallel.tensor.parts import Mend
from distroml.runtime.parallel.tensor.plan import Split
from distroml.runtime.parallel.tensor.trace import Linear, modules_of, output_dim

# A block's code reads few of its integers; more than this is not tried.
MOST_ATTRIBUTES = 8
MOST_DIVIDED = 3
MENDS: tuple[Mend, ...] = get_args(Mend)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Columns and the rows that they feed, or a module of experts: what is split together or not at all.

    Attributes:
        columns: linears whose outputs are divided.
        rows: linears whose inputs are divided.
        experts: path of a module that keeps weights of three dimensions itself; then it stands alone.
        source: where the group comes from.
    """

    columns: tuple[Linear, ...] = ()
    rows: tuple[Linear, ...] = ()
    experts: str = ""
    source: Literal["model", "structure"] = "structure"

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of its modules within the block."""
        return (self.experts,) if self.experts else tuple(part.path for part in (*self.columns, *self.rows))

    def __str__(self) -> str:
        return self.experts or f"{', '.join(c.path for c in self.columns)} → {', '.join(r.path for r in self.rows)}"


def groups(block: nn.Module, linears: Sequence[Linear], styles: Mapping[str, str]) -> list[Group]:
    """The groups of a block: by the model's own styles where they say enough, else by structure.

    Structure: a linear that sees only what comes from outside of the block, or what rows gave, is a column; one that
    sees only what columns gave is a row.

    Args:
        block: the block.
        linears: its linears in the order in which they run.
        styles: "column" or "row" by path within the block, from the model's own plan; may be empty.
    """
    inferred: dict[str, str] = {}
    for linear in linears:
        fed = [inferred[path] for path in linear.feeds if path in inferred]
        inferred[linear.path] = "row" if fed and all(style == "column" for style in fed) else "column"
    found = _connected(linears, styles, "model") if styles else []
    placed = {path for group in found for path in group.paths}
    found += [
        group for group in _connected(linears, inferred, "structure") if not any(path in placed for path in group.paths)
    ]
    for path, module in modules_of(block):
        if sum(parameter.ndim == 3 for _, parameter in _own(module)) >= 2:
            found.append(Group(experts=path, source="model" if path in styles else "structure"))
    return found


def _connected(
    linears: Sequence[Linear], styles: Mapping[str, str], source: Literal["model", "structure"]
) -> list[Group]:
    by_path = {linear.path: linear for linear in linears}
    found: list[tuple[set[str], set[str]]] = []
    for row in linears:
        columns = {path for path in row.feeds if styles.get(path) == "column"}
        if styles.get(row.path) != "row" or not columns:
            continue
        rows = {row.path}
        for other in [other for other in found if other[0] & columns]:
            columns, rows = columns | other[0], rows | other[1]
            found.remove(other)
        found.append((columns, rows))
    order = {linear.path: place for place, linear in enumerate(linears)}
    return [
        Group(
            columns=tuple(by_path[path] for path in sorted(columns, key=order.__getitem__)),
            rows=tuple(by_path[path] for path in sorted(rows, key=order.__getitem__)),
            source=source,
        )
        for columns, rows in found
    ]


def read_attributes(block: nn.Module, call: Callable[[nn.Module], Any]) -> list[tuple[str, str, int]]:
    """(module path, name, value) of the integers above 1 that the block's code reads while it runs.

    Found by taking each away: the code that reads it fails. Those of a module's configuration are named `config.name`.
    Linears are left out, their own sizes follow their layout.
    """

    def is_read(holder: Any, name: str) -> bool:
        held = cast("dict[str, Any]", vars(holder))
        value = held.pop(name)
        try:
            call(block)
        except Exception:
            # `hasattr` and the like lead the code elsewhere: any failure says that it was read.
            return True
        finally:
            held[name] = value
        return False

    found: list[tuple[str, str, int]] = []
    for path, module in modules_of(block):
        if output_dim(module) is not None:
            continue
        found += [(path, name, value) for name, value in _counts(module) if is_read(module, name)]
        config = vars(module).get("config")
        if config is not None and is_read(module, "config"):
            module.config = config = copy.copy(config)
            found += [(path, f"config.{name}", value) for name, value in _counts(config) if is_read(config, name)]
    return sorted(found, key=lambda read: not re.search(r"heads?$|split|inner", read[1]))


def _counts(holder: Any) -> list[tuple[str, int]]:
    held = cast("dict[str, Any]", vars(holder))
    return [(name, value) for name, value in held.items() if type(value) is int and value > 1]


def _own(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(cast("Any", module).named_parameters(recurse=False))


def candidates(
    block: nn.Module, group: Group, attributes: Sequence[tuple[str, str, int]], degree: int
) -> Iterator[dict[str, Split]]:
    """Ways to split `group`, the most likely first; none where a width is not divisible."""
    layouts = _expert_layouts(block, group, degree) if group.experts else _linear_layouts(group, degree)
    divisible = [read for read in attributes if read[2] % degree == 0][:MOST_ATTRIBUTES]
    subsets = [chosen for size in range(MOST_DIVIDED + 1) for chosen in itertools.combinations(divisible, size)]
    for mend, splits in itertools.product(MENDS, list(layouts)):
        if group.experts and mend:
            return
        mended = {
            path: replace(split, mend=mend) if split.style == "column" else split for path, split in splits.items()
        }
        for extra in (None, *(() if mend else _other_parameters(block, group, degree))):
            for chosen in subsets:
                yield _with(mended, extra, chosen, degree)


def _with(
    splits: dict[str, Split],
    extra: tuple[str, str, Layout] | None,
    chosen: Sequence[tuple[str, str, int]],
    degree: int,
) -> dict[str, Split]:
    made = dict(splits)
    if extra is not None:
        path, name, layout = extra
        split = made.get(path, Split(style="inside"))
        made[path] = replace(split, parameters={**split.parameters, name: layout})
    for path, name, value in chosen:
        split = made.get(path, Split(style="inside"))
        made[path] = replace(split, attributes={**split.attributes, name: value // degree})
    return made


def _linear_layouts(group: Group, degree: int) -> Iterator[dict[str, Split]]:
    region = group.rows[-1].path
    rows = {
        row.path: Split(
            style="row",
            parameters={"weight": Layout(1 - row.output_dim, (row.inputs,))},
            attributes={"nx" if row.output_dim else "in_features": row.inputs // degree},
            region=region,
            source=group.source,
        )
        for row in group.rows
    }
    if any(row.inputs % degree for row in group.rows):
        return
    width = group.rows[0].inputs
    ways = [
        [segments for segments in _segments(column.outputs, width) if Layout(0, segments).divides(degree)]
        for column in group.columns
    ]
    for choice in itertools.product(*ways):
        columns = {
            column.path: Split(
                style="column",
                parameters={
                    "weight": Layout(column.output_dim, segments),
                    **({"bias": Layout(0, segments)} if column.bias else {}),
                },
                attributes={"nf" if column.output_dim else "out_features": column.outputs // degree},
                region=region,
                source=group.source,
            )
            for column, segments in zip(group.columns, choice, strict=True)
        }
        yield {**columns, **rows}


def _segments(outputs: int, width: int) -> list[tuple[int, ...]]:
    """How a column's outputs may be made of parts, where the row that they feed takes `width`."""
    ways: list[tuple[int, ...]] = [(outputs,)]
    if outputs > width and outputs % width == 0:
        ways.append((width,) * (outputs // width))
    if outputs > width and (outputs - width) % 2 == 0:
        # Queries, then fewer keys and values: each group of queries shares one (grouped-query attention).
        ways.append((width, (outputs - width) // 2, (outputs - width) // 2))
    return list(dict.fromkeys(ways))


def _expert_layouts(block: nn.Module, group: Group, degree: int) -> Iterator[dict[str, Split]]:
    weights = [(name, weight) for name, weight in _own(block.get_submodule(group.experts)) if weight.ndim == 3]
    (first, up), (last, down) = weights[0], weights[-1]
    for row_dim, column_dim in itertools.product((2, 1), (1, 2)):
        inner, outer = down.shape[row_dim], up.shape[column_dim]
        if outer % inner or outer // inner > 2:
            continue
        for segments in dict.fromkeys(((inner,) * (outer // inner), (outer,))):
            layouts = {first: Layout(column_dim, segments), last: Layout(row_dim, (inner,))}
            if len(weights) == 2 and all(layout.divides(degree) for layout in layouts.values()):
                yield {group.experts: Split(style="experts", parameters=layouts, source=group.source)}


def _other_parameters(block: nn.Module, group: Group, degree: int) -> Iterator[tuple[str, str, Layout]]:
    """Parameters beside the group's own that may belong to heads: (path, name, layout)."""
    parts = [path.split(".")[:-1] for path in group.paths]
    shared = [names[0] for names in itertools.takewhile(lambda names: len(set(names)) == 1, zip(*parts, strict=False))]
    above = ".".join(shared)
    for path, module in modules_of(block):
        if output_dim(module) is not None or not f"{path}.".startswith(f"{above}." if above else ""):
            continue
        for name, parameter in _own(module):
            for dim in reversed(range(parameter.ndim)):
                if parameter.shape[dim] % degree == 0 and parameter.ndim < 3:
                    yield path, name, Layout(dim, (parameter.shape[dim],))
