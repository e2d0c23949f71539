"""Conditions that benchmark commands measure under."""

from __future__ import annotations

import argparse

import pytest
import torch

from apps.core.inference.conditions import PLAIN, Conditions, add_options, conditions
from graftwork.errors import ConfigError


def chosen(*words: str) -> Conditions:
    parser = argparse.ArgumentParser()
    add_options(parser)
    parser.add_argument("--parts", action="store_true")
    return conditions(parser.parse_args(words))


def test_without_words_nothing_is_changed():
    threads = torch.get_num_threads()
    assert chosen() == PLAIN and torch.get_num_threads() == threads
    call = object
    assert PLAIN.within(call) is call
    assert PLAIN.described() == f"cpu, float32, {threads} threads, torch {torch.__version__}"


def test_words_set_them():
    threads = torch.get_num_threads()
    try:
        assert chosen("--threads", "1", "--dtype", "bfloat16", "--compile") == Conditions("cpu", "bfloat16", True)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    assert Conditions(compiled=True).described().endswith(", compiled")


def test_half_types_hold_inside_of_calls_alone():
    left, right = torch.randn(2, 3), torch.randn(3, 2)
    assert Conditions(dtype="bfloat16").within(lambda: left @ right)().dtype == torch.bfloat16
    assert (left @ right).dtype == torch.float32


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "foo"], "no device 'foo'"),
        (["--threads", "-1"], "--threads -1"),
        (["--dtype", "half"], "unknown dtype 'half'; known: bfloat16, float16, float32"),
        (["--parts", "--compile"], "--compile is for whole models"),
    ],
)
def test_wrong_words_are_named(words, message):
    with pytest.raises(ConfigError, match=message):
        chosen(*words)
