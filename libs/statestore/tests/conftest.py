import pytest

pytest.register_assert_rewrite("distroml.statestore.conformance")
