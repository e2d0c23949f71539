"""Key maps load official weights and say what became of every key."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from checkpoints.keymap import KeyMap, Stack, linear_of_conv, load_official
from graftwork.errors import WeightsError


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.many = nn.Parameter(torch.zeros(11, 2))


KEYMAP = KeyMap(
    renames=((r"^conv\.", "first."), (r"^head\.(\d+)\.w$", r"heads.\1")),
    converts=((r"^first\.weight$", linear_of_conv),),
    drops=(r"\.pe$",),
    stacks=(Stack(r"heads\.(?P<index>\d+)", "many"),),
)


def official() -> dict[str, torch.Tensor]:
    state = {"conv.weight": torch.randn(4, 3, 1), "conv.bias": torch.randn(4), "position.pe": torch.randn(9)}
    return state | {f"head.{i}.w": torch.full((2,), float(i)) for i in reversed(range(11))}


def test_renames_converts_stacks_and_drops() -> None:
    model, state = Small(), official()
    report = load_official(model, state, KEYMAP)
    assert report.fits and report.dropped == ("position.pe",)
    assert set(report.renamed) == {"first.weight", "first.bias", "many"} and len(report.renamed["many"]) == 11
    assert torch.equal(model.first.weight, state["conv.weight"][..., 0])
    assert model.many[:, 0].tolist() == list(range(11))  # in order of number, not of text
    assert report.summary() == "0 matched, 3 renamed, 1 dropped, 0 missing, 0 unexpected"


def test_wrapper_prefixes_are_removed() -> None:
    wrapped = {f"module.{key}": value for key, value in official().items()}
    assert load_official(Small(), wrapped, KEYMAP).fits


def test_gradients_pass_through() -> None:
    state = {key: value.requires_grad_() for key, value in official().items()}
    translated = KEYMAP.translate(state).tensors
    (translated["many"].sum() + translated["first.weight"].sum()).backward()
    assert state["head.3.w"].grad is not None and state["conv.weight"].grad is not None


def test_shapes_come_first_in_the_error_and_the_model_is_untouched() -> None:
    model, state = Small(), official()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state["conv.weight"] = torch.randn(4, 5, 1)
    del state["conv.bias"]
    state["stranger"] = torch.zeros(1)
    with pytest.raises(WeightsError) as error:
        load_official(model, state, KEYMAP, where="some.pth")
    text = str(error.value)
    assert "some.pth" in text and "first.weight: found [4, 5], the model has [4, 3]" in text
    assert text.index("found [4, 5]") < text.index("missing: first.bias") < text.index("unexpected: stranger")
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_left_over_keys_pass_when_not_strict() -> None:
    state = official() | {"stranger": torch.zeros(1)}
    del state["conv.bias"]
    report = load_official(Small(), state, KEYMAP, strict=False)
    assert report.missing == ("first.bias",) and report.unexpected == ("stranger",) and not report.fits
    state["conv.weight"] = torch.randn(5, 3, 1)
    with pytest.raises(WeightsError):
        load_official(Small(), state, KEYMAP, strict=False)


def test_same_names_are_matched() -> None:
    model = nn.Linear(2, 2)
    report = load_official(model, nn.Linear(2, 2).state_dict(), KeyMap())
    assert report.matched == ("weight", "bias") and report.fits


def test_long_lists_are_cut() -> None:
    state = official() | {f"stranger{i}": torch.zeros(1) for i in range(30)}
    with pytest.raises(WeightsError, match="and 22 more"):
        load_official(Small(), state, KEYMAP)
