"""pytest's plugin: fixtures for tests of a port, and the table of layers below a test that failed.

pytest loads it wherever jaxstate is installed; `-p no:jaxstate` leaves it out. It is the only file that
imports pytest, and nothing else imports it.

    def test_my_port(assert_port, port_inputs):
        assert_port(torch_net, model, port_inputs(2, 3, 32, 32), input_layout="n h w c -> n c h w")
"""

import zlib
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

import numpy as np
import pytest

from jaxstate.errors import ParityError
from jaxstate.testing import assert_same_outputs


def pytest_addoption(parser: pytest.Parser) -> None:
    """The tolerance, from the command line."""
    group = parser.getgroup("jaxstate", "ports of torch modules to JAX")
    words = "relative tolerance of the fixture assert_port (default: %(default)s)"
    group.addoption("--port-rtol", type=float, default=1e-5, help=words)


@pytest.fixture
def port_rtol(request: pytest.FixtureRequest) -> float:
    """The tolerance of `assert_port`; a module that needs another one overrides this fixture."""
    return request.config.getoption("--port-rtol")  # type: ignore[return-value]


@pytest.fixture
def port_inputs(request: pytest.FixtureRequest) -> Callable[..., np.ndarray]:
    """Draws inputs: `port_inputs(2, 3, 8, 8)` normal ones, `port_inputs(2, 7, below=100)` integers.

    Seeded with the test's name, so a test draws the same in every run, and two tests differ.
    """
    rng = np.random.default_rng(zlib.crc32(request.node.nodeid.encode()))

    def draw(*shape: int, below: int | None = None, dtype: Any = "float32") -> np.ndarray:
        if below is not None:
            return rng.integers(below, size=shape)
        return rng.standard_normal(shape).astype(dtype)

    return draw


@pytest.fixture
def assert_port(port_rtol: float) -> Callable[..., None]:
    """`jaxstate.testing.assert_same_outputs` with the tolerance of this run."""
    return partial(assert_same_outputs, rtol=port_rtol)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put the table of layers below the report of a test that a ParityError ended."""
    report = yield
    error = call.excinfo.value if call.excinfo else None
    if isinstance(error, ParityError) and error.layers is not None:
        report.sections.append(("layers: torch beside JAX", str(error.layers)))
    return report
