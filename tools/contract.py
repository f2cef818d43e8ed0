"""The contract in `proto/`: generate its code, prove the committed code fresh, refuse breaking changes.

    python tools/contract.py generate    write libs/api from proto/
    python tools/contract.py fresh       fail where libs/api is not what proto/ generates, or proto/ has what was
                                         never published: nothing would guard that
    python tools/contract.py breaking    fail where proto/ breaks what was published
    python tools/contract.py publish     take what was added as published; with --breaking what was broken, too

What was published is `proto/published.json`: a `google.protobuf.FileDescriptorSet` without comments. Additions are
never breaking. What is removed, renamed, renumbered, retyped or streams differently breaks readers of stored events
or callers of another release; it belongs into a new version of the package (`v2`) beside the old one.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = "published.json"


class ContractError(Exception):
    """The contract is not what it should be; the text says what to do."""


def generate(proto: Path, out: Path) -> None:
    """Write the Python code of every file below `proto` into `out`, and remove code whose file is gone."""
    out.mkdir(parents=True, exist_ok=True)
    for stale in out.rglob("*_pb2*"):
        stale.unlink()
    _protoc(proto, *(f"--{plugin}={out}" for plugin in ("python_out", "grpc_python_out")))
    _protoc(proto, *(f"--{plugin}=quiet:{out}" for plugin in ("mypy_out", "mypy_grpc_out")))


def describe(proto: Path) -> FileDescriptorSet:
    """The descriptors of every file below `proto`, without comments and foreign imports."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "set.binpb")
        _protoc(proto, f"--descriptor_set_out={target}")
        return FileDescriptorSet.FromString(target.read_bytes())


def trimmed(descriptors: FileDescriptorSet) -> FileDescriptorSet:
    """The same without what follows from the rest, so that a published set is short to read."""
    copy = FileDescriptorSet()
    copy.CopyFrom(descriptors)

    def trim(message: DescriptorProto) -> None:
        for field in message.field:
            field.ClearField("json_name")
        for inner in message.nested_type:
            trim(inner)

    for file in copy.file:
        for message in file.message_type:
            trim(message)
    return copy


def check_fresh(proto: Path, committed: Path) -> None:
    """Raise `ContractError` unless `committed` is exactly what `proto` generates."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        generate(proto, made)
        different = sorted(
            str(path)
            for path in {p.relative_to(made) for p in made.rglob("*_pb2*")}
            | {p.relative_to(committed) for p in committed.rglob("*_pb2*") if p.suffix in (".py", ".pyi")}
            if _read(made / path) != _read(committed / path)
        )
    if different:
        raise ContractError(f"generated code is stale: {', '.join(different)}; run `make proto` and commit the result")


def check_published(proto: Path) -> None:
    """Raise `ContractError` where `proto` has what was never published, so that `breaking` would not guard it."""
    if found := unpublished(read_published(proto), describe(proto)):
        lines = "\n  ".join(found)
        raise ContractError(
            f"the contract has what was never published, and what could therefore be broken unseen:\n  {lines}\n"
            "when it is as it shall stay, run `python tools/contract.py publish` and commit the result"
        )


def check_unbroken(proto: Path) -> None:
    """Raise `ContractError` where `proto` breaks what was published."""
    if found := breaking(read_published(proto), describe(proto)):
        lines = "\n  ".join(found)
        raise ContractError(
            f"the contract breaks what was published:\n  {lines}\n"
            "keep the old and add beside it, or make a new package version; where nobody depends on it yet, accept it "
            "with `python tools/contract.py publish --breaking` and say so in CHANGELOG.md"
        )


def read_published(proto: Path) -> FileDescriptorSet:
    """What was published last; nothing where nothing was."""
    if not (proto / PUBLISHED).is_file():
        return FileDescriptorSet()
    return json_format.Parse((proto / PUBLISHED).read_text(), FileDescriptorSet())


def write_published(proto: Path, descriptors: FileDescriptorSet) -> None:
    """Take `descriptors` as published from now on."""
    (proto / PUBLISHED).write_text(json_format.MessageToJson(trimmed(descriptors), indent=1) + "\n")


def breaking(old: FileDescriptorSet, new: FileDescriptorSet) -> list[str]:
    """Every change from `old` to `new` that breaks a reader or a caller, in words."""
    before, after = _Index(old), _Index(new)
    return [
        *_compare_messages(before, after),
        *_compare_enums(before, after),
        *_compare_services(before, after),
    ]


def unpublished(old: FileDescriptorSet, new: FileDescriptorSet) -> list[str]:
    """What `new` has and `old` has not, in words; of a new message, enum or service its name alone."""
    before, after = _Index(old), _Index(new)
    found: list[str] = []
    for kind, part, olds, news in (
        ("message", "field", _parts(before.messages, "field"), _parts(after.messages, "field")),
        ("enum", "value", _parts(before.enums, "value"), _parts(after.enums, "value")),
        ("service", "rpc", _parts(before.services, "method"), _parts(after.services, "method")),
    ):
        for name, parts in news.items():
            if name not in olds:
                found.append(f"{kind} {name}")
            else:
                found += [f"{part} {name}.{each}" for each in parts if each not in olds[name]]
    return found


def _parts(whole: Mapping[str, Any], attribute: str) -> dict[str, list[str]]:
    return {name: [part.name for part in getattr(one, attribute)] for name, one in whole.items()}


class _Index:
    """Descriptors by full name, wherever their file is."""

    def __init__(self, files: FileDescriptorSet) -> None:
        self.messages: dict[str, DescriptorProto] = {}
        self.enums: dict[str, EnumDescriptorProto] = {}
        self.services: dict[str, ServiceDescriptorProto] = {}
        for file in files.file:
            self.services |= {f"{file.package}.{service.name}": service for service in file.service}
            self.enums |= {f"{file.package}.{enum.name}": enum for enum in file.enum_type}
            for message in file.message_type:
                self._add(f"{file.package}.{message.name}", message)

    def _add(self, name: str, message: DescriptorProto) -> None:
        self.messages[name] = message
        self.enums |= {f"{name}.{enum.name}": enum for enum in message.enum_type}
        for inner in message.nested_type:
            self._add(f"{name}.{inner.name}", inner)


def _compare_messages(before: _Index, after: _Index) -> Iterator[str]:
    for name, old in before.messages.items():
        if (new := after.messages.get(name)) is None:
            yield f"message {name} is gone"
            continue
        by_number = {field.number: field for field in new.field}
        numbers = {field.name: field.number for field in new.field}
        for field in old.field:
            path = f"{name}.{field.name}"
            if (found := by_number.get(field.number)) is None or found.name != field.name:
                if (number := numbers.get(field.name)) is not None:
                    yield f"field {path} was number {field.number} and is {number}"
                elif found is not None:
                    yield f"field {path} (number {field.number}) is now called {found.name}"
                else:
                    yield f"field {path} (number {field.number}) is gone"
            elif (was := _type(old, field)) != (now := _type(new, found)):
                yield f"field {path} was {was} and is {now}"


def _compare_enums(before: _Index, after: _Index) -> Iterator[str]:
    for name, old in before.enums.items():
        if (new := after.enums.get(name)) is None:
            yield f"enum {name} is gone"
            continue
        numbers = {value.name: value.number for value in new.value}
        for value in old.value:
            if (number := numbers.get(value.name)) is None:
                yield f"value {name}.{value.name} is gone"
            elif number != value.number:
                yield f"value {name}.{value.name} was number {value.number} and is {number}"


def _compare_services(before: _Index, after: _Index) -> Iterator[str]:
    for name, old in before.services.items():
        if (new := after.services.get(name)) is None:
            yield f"service {name} is gone"
            continue
        methods = {method.name: method for method in new.method}
        for method in old.method:
            path = f"{name}.{method.name}"
            if (found := methods.get(method.name)) is None:
                yield f"rpc {path} is gone"
                continue
            for side, was, now in (
                ("takes", method.input_type, found.input_type),
                ("returns", method.output_type, found.output_type),
            ):
                if was != now:
                    yield f"rpc {path} {side} {now.lstrip('.')}, before it was {was.lstrip('.')}"
            for side, was, now in (
                ("requests", method.client_streaming, found.client_streaming),
                ("responses", method.server_streaming, found.server_streaming),
            ):
                if was != now:
                    yield f"rpc {path} has {'a stream of' if now else 'single'} {side} now"


def _type(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    """Everything about a field that its readers depend on, in words."""
    kind = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    name = field.type_name.removeprefix(".") or kind
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {name}"
    if field.proto3_optional:
        return f"optional {name}"
    if field.HasField("oneof_index"):
        return f"{name} in oneof {message.oneof_decl[field.oneof_index].name}"
    return name


def _protoc(proto: Path, *outputs: str) -> None:
    files = [str(path) for path in sorted(proto.rglob("*.proto"))]
    # The plugins stand beside this interpreter, which need not be on the path.
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{proto}", *outputs, *files]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ContractError(f"protoc failed:\n{done.stderr}{done.stdout}")


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def main(arguments: list[str] | None = None) -> int:
    """The command line; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["generate", "fresh", "breaking", "publish"])
    parser.add_argument("--proto", type=Path, default=ROOT / "proto")
    parser.add_argument("--out", type=Path, default=ROOT / "libs" / "api")
    parser.add_argument("--breaking", action="store_true", help="publish breaking changes, too")
    options = parser.parse_args(arguments)
    try:
        match options.action:
            case "generate":
                generate(options.proto, options.out)
            case "fresh":
                check_fresh(options.proto, options.out)
                check_published(options.proto)
            case "publish":
                if not options.breaking:
                    check_unbroken(options.proto)
                write_published(options.proto, describe(options.proto))
            case _:
                check_unbroken(options.proto)
    except ContractError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
