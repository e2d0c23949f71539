"""Every public golden case of the systems that have adapters."""

from __future__ import annotations

import pytest

from tests.parity import adapters
from tests.parity.__main__ import GOLDENS
from tests.parity.case import Case, find_cases
from tests.parity.runner import run_case

ABSENT = pytest.param(None, marks=pytest.mark.skip(reason="needs ../shared/goldens beside the repository"), id="absent")


def public_cases() -> list[object]:
    if not GOLDENS.is_dir():
        return [ABSENT]
    cases = [case for case in find_cases([GOLDENS]) if adapters.of_area(case.area) is not None]
    return [pytest.param(case, id=f"{case.area}-{case.name}") for case in cases]


@pytest.mark.parametrize("case", public_cases())
def test_our_system_gives_the_golden_numbers(case: Case) -> None:
    result = run_case(case)
    if result.status == "no adapter":
        pytest.skip(f"{case.area}/{case.system} has no adapter: the system is not built yet")
    assert result.status == "pass", f"{result.message}\n{result.details}"
