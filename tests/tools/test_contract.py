"""The contract's guard: each kind of breaking change is refused, additions are not, stale code is found."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from tools import contract

BASE = """
syntax = "proto3";
package shop.v1;

service Shop {
  rpc Buy(Order) returns (Receipt);
  rpc Watch(Order) returns (stream Receipt);
}

enum Colour {
  COLOUR_UNSPECIFIED = 0;
  COLOUR_RED = 1;
}

message Order {
  string id = 1;
  int32 count = 2;
  repeated string notes = 3;
  optional int32 limit = 4;
  Colour colour = 5;
  map<string, int32> prices = 6;
  oneof payment { string card = 7; string cash = 8; }
  message Line { string text = 1; }
  Line line = 9;
}

message Receipt { string id = 1; }
"""

BREAKING = {
    "field removed": ("  int32 count = 2;\n", "", "field shop.v1.Order.count (number 2) is gone"),
    "field reserved": ("int32 count = 2;", "reserved 2;", "field shop.v1.Order.count (number 2) is gone"),
    "field renumbered": ("int32 count = 2;", "int32 count = 12;", "field shop.v1.Order.count was number 2 and is 12"),
    "field renamed": (
        "int32 count = 2;",
        "int32 amount = 2;",
        "field shop.v1.Order.count (number 2) is now called amount",
    ),
    "field retyped": ("int32 count = 2;", "int64 count = 2;", "field shop.v1.Order.count was int32 and is int64"),
    "list made single": ("repeated string notes", "string notes", "Order.notes was repeated string and is string"),
    "presence dropped": ("optional int32 limit", "int32 limit", "Order.limit was optional int32 and is int32"),
    "enum for number": ("Colour colour = 5;", "int32 colour = 5;", "Order.colour was shop.v1.Colour and is int32"),
    "map retyped": ("map<string, int32>", "map<string, int64>", "Order.PricesEntry.value was int32 and is int64"),
    "out of a oneof": (
        "oneof payment { string card = 7; string cash = 8; }",
        "oneof payment { string card = 7; } string cash = 8;",
        "Order.cash was string in oneof payment and is string",
    ),
    "nested field removed": (
        "message Line { string text = 1; }",
        "message Line {}",
        "Order.Line.text (number 1) is gone",
    ),
    "message removed": ("message Receipt { string id = 1; }", "", "message shop.v1.Receipt is gone"),
    "enum removed": ("enum Colour", "enum Color", "enum shop.v1.Colour is gone"),
    "enum value removed": ("  COLOUR_RED = 1;\n", "", "value shop.v1.Colour.COLOUR_RED is gone"),
    "enum value renumbered": ("COLOUR_RED = 1;", "COLOUR_RED = 2;", "COLOUR_RED was number 1 and is 2"),
    "rpc removed": ("  rpc Buy(Order) returns (Receipt);\n", "", "rpc shop.v1.Shop.Buy is gone"),
    "rpc takes another": ("rpc Buy(Order)", "rpc Buy(Receipt)", "rpc shop.v1.Shop.Buy takes shop.v1.Receipt"),
    "rpc returns another": (
        "Buy(Order) returns (Receipt)",
        "Buy(Order) returns (Order)",
        "Shop.Buy returns shop.v1.Order",
    ),
    "requests streamed": ("Buy(Order)", "Buy(stream Order)", "rpc shop.v1.Shop.Buy has a stream of requests now"),
    "answers not streamed": ("(stream Receipt)", "(Receipt)", "rpc shop.v1.Shop.Watch has single responses now"),
    "service removed": ("service Shop", "service Store", "service shop.v1.Shop is gone"),
    "package changed": ("package shop.v1;", "package shop.v2;", "message shop.v1.Order is gone"),
}

# Replacements that the change needs elsewhere so that the file still compiles.
FOLLOW = {
    "message removed": (
        ("returns (Receipt)", "returns (Order)"),
        ("returns (stream Receipt)", "returns (stream Order)"),
    ),
    "enum removed": (("Colour colour", "Color colour"),),
}

# What is added, and what of it was never published.
ADDITIONS = {
    "a field": ("int32 count = 2;", "int32 count = 2; bytes extra = 20;", ["field shop.v1.Order.extra"]),
    "a message": (
        "message Receipt",
        "message Gift { string id = 1; }\nmessage Receipt",
        ["message shop.v1.Gift"],
    ),
    "an inner message": (
        "{ string text = 1; }",
        "{ string text = 1; message Of {} }",
        ["message shop.v1.Order.Line.Of"],
    ),
    "an enum": ("enum Colour", "enum Size { SIZE_UNSPECIFIED = 0; }\nenum Colour", ["enum shop.v1.Size"]),
    "an enum value": ("COLOUR_RED = 1;", "COLOUR_RED = 1; COLOUR_BLUE = 2;", ["value shop.v1.Colour.COLOUR_BLUE"]),
    "an rpc": (
        "service Shop {",
        "service Shop {\n  rpc Return(Receipt) returns (Order);",
        ["rpc shop.v1.Shop.Return"],
    ),
    "a service": ("enum Colour", "service Store {}\nenum Colour", ["service shop.v1.Store"]),
    "a oneof member": ("string cash = 8;", "string cash = 8; string barter = 21;", ["field shop.v1.Order.barter"]),
    "a comment": ("message Order {", "// What is wanted.\nmessage Order {", []),
}


def describe(folder: Path, text: str) -> FileDescriptorSet:
    proto = folder / "shop.proto"
    proto.write_text(text)
    return contract.describe(folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> FileDescriptorSet:
    return describe(tmp_path_factory.mktemp("base"), BASE)


@pytest.mark.parametrize("kind", BREAKING)
def test_a_breaking_change_is_refused_by_name(kind: str, base: FileDescriptorSet, tmp_path: Path) -> None:
    old, new, said = BREAKING[kind]
    text = BASE
    for before, after in ((old, new), *FOLLOW.get(kind, ())):
        assert before in text
        text = text.replace(before, after)
    found = contract.breaking(base, describe(tmp_path, text))
    assert any(said in problem for problem in found), found


@pytest.mark.parametrize("kind", ADDITIONS)
def test_an_addition_is_not_and_is_named_until_it_is_published(
    kind: str, base: FileDescriptorSet, tmp_path: Path
) -> None:
    old, new, named = ADDITIONS[kind]
    assert old in BASE
    added = describe(tmp_path, BASE.replace(old, new))
    assert contract.breaking(base, added) == []
    assert contract.unpublished(base, added) == named
    assert contract.unpublished(added, added) == []


def test_moving_a_message_to_another_file_breaks_nobody(base: FileDescriptorSet, tmp_path: Path) -> None:
    receipt = "message Receipt { string id = 1; }"
    (tmp_path / "receipt.proto").write_text(f'syntax = "proto3";\npackage shop.v1;\n{receipt}\n')
    text = BASE.replace(receipt, "").replace("package shop.v1;", 'package shop.v1;\nimport "receipt.proto";')
    assert contract.breaking(base, describe(tmp_path, text)) == []


def test_publishing_takes_additions_and_breaks_only_when_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proto, out = tmp_path / "proto", tmp_path / "out"
    proto.mkdir()

    def run(*arguments: str, text: str) -> int:
        (proto / "shop.proto").write_text(text)
        contract.generate(proto, out)
        return contract.main([*arguments, "--proto", str(proto), "--out", str(out)])

    assert run("fresh", text=BASE) == 1
    assert "message shop.v1.Order\n" in capsys.readouterr().err
    assert run("publish", text=BASE) == 0
    assert run("fresh", text=BASE) == 0

    more = BASE.replace("int32 count = 2;", "int32 count = 2; bytes extra = 20;")
    assert run("breaking", text=more) == 0
    assert run("fresh", text=more) == 1
    assert "field shop.v1.Order.extra\nwhen it is as it shall stay, run `python tools/contract.py publish`" in (
        capsys.readouterr().err
    )
    assert run("publish", text=more) == 0
    assert run("fresh", text=more) == 0

    other = more.replace("bytes extra", "string extra")
    assert run("breaking", text=other) == 1
    assert run("publish", text=other) == 1
    assert "python tools/contract.py publish --breaking" in capsys.readouterr().err
    assert run("publish", "--breaking", text=other) == 0
    assert run("breaking", text=other) == 0


def test_stale_missing_and_left_over_code_is_found(tmp_path: Path) -> None:
    proto, out = tmp_path / "proto", tmp_path / "out"
    proto.mkdir()
    (proto / "shop.proto").write_text(BASE)
    contract.generate(proto, out)
    contract.check_fresh(proto, out)
    (proto / "shop.proto").write_text(BASE.replace("int32 count = 2;", "int32 count = 2; int32 extra = 20;"))
    with pytest.raises(contract.ContractError, match=r"shop_pb2\.py.*make proto"):
        contract.check_fresh(proto, out)
    contract.generate(proto, out)
    contract.check_fresh(proto, out)
    (out / "shop_pb2.pyi").unlink()
    with pytest.raises(contract.ContractError, match=r"shop_pb2\.pyi"):
        contract.check_fresh(proto, out)
    contract.generate(proto, out)
    (out / "gone_pb2.py").touch()
    with pytest.raises(contract.ContractError, match=r"gone_pb2\.py"):
        contract.check_fresh(proto, out)
    contract.generate(proto, out)
    assert not (out / "gone_pb2.py").exists()


def test_a_contract_that_does_not_compile_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "shop.proto").write_text("message {")
    assert contract.main(["publish", "--proto", str(tmp_path)]) == 1
    assert "shop.proto:1:9" in capsys.readouterr().err
