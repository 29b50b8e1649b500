"""What a flow found wrong is shown in full: pytest explains the asserts of the flows as it does those of tests."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("tests.relay.flows", "tests.relay.desk")
