import pytest

pytest.register_assert_rewrite("distroml.eventstore.conformance")
