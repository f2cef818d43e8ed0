"""The shell around deciders: commits, repeats, races, several streams, refolding."""

import asyncio
import dataclasses
import sys
from dataclasses import dataclass

import pytest

from distroml.events import Decider, Position, Rejection, UnknownEvent
from distroml.eventstore import Append, Fenced, Guard, Part, StoreDown, WrongExpectedVersion, memory, sqlite
from distroml.eventstore.codec import DataclassCodec, JoinedCodec, JsonState
from distroml.eventstore.conformance import CONTEXT, commit_of
from distroml.eventstore.draft import Repository
from distroml.eventstore.handle import CommandKey, Unit, handle, transact
from distroml.eventstore.port import state_prefix
from distroml.eventstore.projection import ProjectionRunner
from distroml.eventstore.replay import Difference, mend, state_at, verify

STREAM = "test/account/1"


@dataclass(frozen=True, slots=True)
class Deposited:
    amount: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class Withdrawn:
    amount: int


@dataclass(frozen=True, slots=True)
class Account:
    balance: int = 0
    notes: tuple[str, ...] = ()


def decide(account, amount):
    if amount == 0:
        return ()
    if account.balance + amount < 0:
        raise Rejection("TooLittle", f"the balance is {account.balance}", balance=str(account.balance))
    return (Deposited(amount, f"n{amount}"),) if amount > 0 else (Withdrawn(-amount),)


def evolve(account, event):
    if isinstance(event, Deposited):
        return Account(account.balance + event.amount, (*account.notes, event.note))
    return dataclasses.replace(account, balance=account.balance - event.amount)


DECIDER = Decider(Account(), decide, evolve)
CODEC = DataclassCodec(
    {"test.Deposited": (Deposited, 2), "test.Withdrawn": (Withdrawn, 1)},
    {("test.Deposited", 1): lambda body: {"amount": body["sum"], "note": "old"}},
)
STATE = JsonState(Account)


@pytest.fixture(params=["memory", "sqlite"])
async def store(request, tmp_path):
    store = memory.open_event_store() if request.param == "memory" else sqlite.open_event_store(tmp_path / "s.db")
    yield store
    await store.close()


@pytest.fixture
def accounts(store):
    return Repository(store, DECIDER, CODEC, STATE)


def answer(state, events):
    return f"{state.balance} after {len(events)}".encode()


async def test_a_command_is_decided_committed_and_answered(store, accounts):
    done = await handle(accounts, STREAM, 5, context=CONTEXT, answer=answer, parts=lambda s, e: [Part("k", b"v")])
    assert done.state == Account(5, ("n5",))
    assert done.events == (Deposited(5, "n5"),)
    assert (done.outcome.answer, done.outcome.repeated) == (b"5 after 1", False)
    assert done.outcome.position == await store.head()
    assert (await accounts.load(STREAM)).state == done.state
    assert (await store.parts("k"))[0] == {"k": b"v"}


async def test_nothing_new_and_no_id_commits_nothing(store, accounts):
    done = await handle(accounts, STREAM, 0, context=CONTEXT)
    assert (done.outcome.position, done.events, done.state) == (None, (), Account())
    assert (await store.parts(""))[1] == 0


async def test_a_repeated_command_gets_its_first_answer(store, accounts):
    key = CommandKey("cmd-1", b"withdraw 5")
    await handle(accounts, STREAM, 5, context=CONTEXT)
    first = await handle(accounts, STREAM, -5, context=CONTEXT, key=key, answer=answer)
    # Decided anew it would be refused: the balance is gone.
    again = await handle(accounts, STREAM, -5, context=CONTEXT, key=key, answer=answer)
    assert again.outcome.answer == first.outcome.answer == b"0 after 1"
    assert again.outcome.repeated
    assert again.state is None
    await handle(accounts, STREAM, 50, context=CONTEXT)
    again = await handle(accounts, STREAM, -5, context=CONTEXT, key=key, answer=answer)
    assert again.outcome.answer == b"0 after 1"
    assert await store.version(STREAM) == 3


@pytest.mark.parametrize("amount", [1, -100])
async def test_a_reused_command_id_is_refused(accounts, amount):
    await handle(accounts, STREAM, 5, context=CONTEXT, key=CommandKey("cmd-1", b"5"))
    with pytest.raises(Rejection) as caught:
        await handle(accounts, STREAM, amount, context=CONTEXT, key=CommandKey("cmd-1", b"other"))
    assert caught.value.reason == "CommandIdReused"


async def test_a_rejection_is_decided_anew(accounts):
    key = CommandKey("cmd-1", b"-5")
    with pytest.raises(Rejection, match="TooLittle"):
        await handle(accounts, STREAM, -5, context=CONTEXT, key=key)
    await handle(accounts, STREAM, 5, context=CONTEXT)
    assert not (await handle(accounts, STREAM, -5, context=CONTEXT, key=key)).outcome.repeated


async def test_racing_commands_all_come_to_pass(store, accounts):
    await asyncio.gather(*(handle(accounts, STREAM, 1, context=CONTEXT, attempts=50) for _ in range(10)))
    assert (await accounts.load(STREAM)).state.balance == 10
    assert await verify(store, DECIDER, CODEC, STATE, [STREAM]) == []


async def test_a_race_lost_at_every_attempt_is_raised(store, accounts):
    calls = 0

    async def always_late():
        nonlocal calls
        calls += 1
        draft = (await accounts.load(STREAM)).decide(1)
        await handle(accounts, STREAM, 1, context=CONTEXT)
        return Unit((draft,))

    with pytest.raises(WrongExpectedVersion):
        await transact(store, always_late, context=CONTEXT, attempts=3)
    assert calls == 3


async def test_a_guard_that_does_not_hold_fences(accounts):
    with pytest.raises(Fenced):
        await handle(accounts, STREAM, 1, context=CONTEXT, guards=[Guard("fences/1", value=b"2")])


async def test_several_streams_commit_together(store, accounts):
    await handle(accounts, "test/account/a", 10, context=CONTEXT)

    async def transfer(amount):
        source, target = await accounts.load("test/account/a"), await accounts.load("test/account/b")
        return Unit((source.decide(-amount), target.decide(amount).decide(1)), answer=b"done")

    outcome = await transact(store, lambda: transfer(7), context=CONTEXT, command=CommandKey("t", b"7"))
    assert [(r.stream, r.version) for r in outcome.events] == [
        ("test/account/a", 2),
        ("test/account/b", 1),
        ("test/account/b", 2),
    ]
    assert len({recorded.position.revision for recorded in outcome.events}) == 1
    assert (await accounts.load("test/account/b")).state.balance == 8
    again = await transact(store, lambda: transfer(7), context=CONTEXT, command=CommandKey("t", b"7"))
    assert (again.repeated, again.answer) == (True, b"done")
    with pytest.raises(Rejection):
        await transact(store, lambda: transfer(7), context=CONTEXT)
    assert (await accounts.load("test/account/b")).state.balance == 8


async def test_event_ids_of_a_command_are_the_same_at_every_try(accounts):
    first = (await accounts.load(STREAM)).decide(1)
    from distroml.eventstore.handle import _commit

    key = CommandKey("cmd", b"")
    one, two = (_commit(Unit((first,)), CONTEXT, key).appends[0].events[0].id for _ in range(2))
    assert one == two
    assert _commit(Unit((first,)), CONTEXT, None).appends[0].events[0].id != one


async def test_state_of_another_evolve_is_folded_again(store, accounts):
    await handle(accounts, STREAM, 5, context=CONTEXT)
    doubled = Decider(Account(), decide, lambda a, e: Account(a.balance + 2 * e.amount))
    changed = Repository(store, doubled, CODEC, STATE, (sys.modules["dataclasses"],))
    assert changed.evolve_hash != accounts.evolve_hash
    assert (await changed.load(STREAM)).state.balance == 10
    await handle(changed, STREAM, 1, context=CONTEXT)
    state, version = changed.read_parts(STREAM, (await store.parts(state_prefix(STREAM)))[0])
    assert (state.balance, version) == (12, 2)


async def test_lost_damaged_or_outdated_parts_are_folded_again(store, accounts):
    await handle(accounts, STREAM, 5, context=CONTEXT)
    prefix = state_prefix(STREAM)
    original = (await store.parts(prefix))[0]
    for key in original:
        for value in (None, b"{"):
            await store.commit(commit_of(parts=(Part(key, value),)))
            assert (await accounts.load(STREAM)).state.balance == 5
            assert await mend(accounts, STREAM, context=CONTEXT)
            assert (await store.parts(prefix))[0] == original
    # Events written past the state: the first attempt loses, the second one folds.
    event = CODEC.encode(Deposited(1), id="x")
    await store.commit(commit_of(Append(STREAM, 1, (event,))))
    assert (await handle(accounts, STREAM, 1, context=CONTEXT)).state.balance == 7


async def test_verify_names_each_difference_and_mend_ends_them(store, accounts):
    await handle(accounts, STREAM, 5, context=CONTEXT)
    assert await verify(store, DECIDER, CODEC, STATE, [STREAM, "test/account/none"]) == []
    forged = STATE.parts(Account(6, ("n5", "extra")))["state"]
    await store.commit(commit_of(parts=(Part(state_prefix(STREAM) + "state", forged),)))
    assert await verify(store, DECIDER, CODEC, STATE, [STREAM]) == [
        Difference(STREAM, "balance", "6", "5"),
        Difference(STREAM, "notes.1", '"extra"', ""),
    ]
    assert await mend(accounts, STREAM, context=CONTEXT)
    assert not await mend(accounts, STREAM, context=CONTEXT)
    assert await verify(store, DECIDER, CODEC, STATE, [STREAM]) == []
    for key in (await store.parts(state_prefix(STREAM)))[0]:
        await store.commit(commit_of(parts=(Part(key, None),)))
    assert [d.field for d in await verify(store, DECIDER, CODEC, STATE, [STREAM])] == ["@parts"]


async def test_the_state_at_any_position(store, accounts):
    states = [(Account(), 0)]
    positions = [Position(store.log_id, 0, 0)]
    for amount in (5, -2, 7):
        done = await handle(accounts, STREAM, amount, context=CONTEXT)
        states.append((done.state, len(states)))
        positions.append(done.outcome.position)
        await handle(accounts, "test/account/other", 1, context=CONTEXT)
    for position, expected in zip(positions, states, strict=True):
        assert await state_at(store, DECIDER, CODEC, STREAM, position) == expected
    with pytest.raises(ValueError, match="another"):
        await state_at(store, DECIDER, CODEC, STREAM, Position("another", 1))


def test_the_codec_upcasts_and_stops_at_what_it_does_not_know():
    assert CODEC.decode("test.Deposited", 1, b'{"sum": 3}') == Deposited(3, "old")
    assert CODEC.decode("test.Deposited", 2, CODEC.encode(Deposited(3), id="e").data) == Deposited(3)
    for type_, schema in (("test.Deposited", 3), ("test.Deposited", 0), ("test.Other", 1)):
        with pytest.raises(UnknownEvent):
            CODEC.decode(type_, schema, b"{}")
    for data in (b"{", b'{"amount": "x"}', b"{}"):
        with pytest.raises(ValueError):
            CODEC.decode("test.Withdrawn", 1, data)
    with pytest.raises(ValueError, match="two stored names"):
        DataclassCodec({"a": (Deposited, 1), "b": (Deposited, 1)})
    with pytest.raises(ValueError, match="leads nowhere"):
        DataclassCodec({"a": (Deposited, 1)}, {("a", 1): dict})


def test_joined_codecs():
    one, two = DataclassCodec({"a.D": (Deposited, 1)}), DataclassCodec({"a.W": (Withdrawn, 1)})
    joined = JoinedCodec([one, two])
    for event in (Deposited(1, "x"), Withdrawn(2)):
        stored = joined.encode(event, id="e")
        assert joined.decode(stored.type, stored.schema, stored.data) == event
    with pytest.raises(UnknownEvent):
        joined.decode("a.X", 1, b"{}")
    with pytest.raises(ValueError, match="same class"):
        JoinedCodec([one, one])


class Sums:
    def __init__(self):
        self.total, self.broken = 0, False

    def apply(self, recorded):
        if self.broken:
            raise RuntimeError("broken")
        self.total += CODEC.decode(recorded.type, recorded.schema, recorded.data).amount


async def until(condition):
    async with asyncio.timeout(5):
        while not await condition():
            await asyncio.sleep(0.02)


async def test_a_projection_follows_acknowledges_holds_and_goes_on(store, accounts):
    sums, reports = Sums(), []
    runner = ProjectionRunner(store.subscribe("sums"), sums, report=lambda r, e: reports.append(str(e)))
    running = asyncio.create_task(runner.run())
    await handle(accounts, STREAM, 5, context=CONTEXT)

    async def acknowledged():
        return await store.cursor("sums") == await store.head()

    await until(acknowledged)
    assert (sums.total, runner.applied, runner.failure) == (5, await store.head(), "")
    sums.broken = True
    await handle(accounts, STREAM, 7, context=CONTEXT)

    async def held():
        return "RuntimeError: broken" in runner.failure

    await until(held)
    assert not await acknowledged()
    sums.broken = False
    await until(acknowledged)
    assert (sums.total, runner.failure, reports) == (12, "", ["broken"])
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_projection_ends_with_its_store(store):
    running = asyncio.create_task(ProjectionRunner(store.subscribe("sums"), Sums()).run())
    await asyncio.sleep(0.05)
    await store.close()
    await asyncio.wait_for(running, 5)
    with pytest.raises(StoreDown):
        await store.read()
