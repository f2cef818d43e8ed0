import pytest

from deploy.stack import running
from deploy.stack.etcd import Etcd

pytest.register_assert_rewrite("distroml.eventstore.conformance", "distroml.eventstore.retiring_conformance")


@pytest.fixture(scope="session")
def etcd(tmp_path_factory):
    """One etcd for all tests of this process; each takes a deployment of its own."""
    with running(Etcd(), tmp_path_factory.mktemp("etcd")) as server:
        yield server
