"""The state store's promises, kept by a real etcd."""

import asyncio
import secrets

import pytest

from distroml.statestore.conformance import StateStoreConformance
from distroml.statestore.etcd import EtcdSettings, open_state_store


class TestEtcd(StateStoreConformance):
    async def pass_time(self, store, seconds):
        # On a busy machine a judge takes itself for one that stood still, and grants another ttl.
        await asyncio.sleep(seconds if seconds < 2 else seconds + 2)

    @pytest.fixture
    async def store(self, etcd):
        settings = EtcdSettings(endpoints=(f"http://127.0.0.1:{etcd.port}",))
        store = open_state_store(settings, f"dep-{secrets.token_hex(4)}")
        yield store
        await store.close()
