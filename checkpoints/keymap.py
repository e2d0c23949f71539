"""Key maps: how the tensors of an official checkpoint are called, and shaped, in our models.

A map is data (pairs of regular expression and replacement) plus small functions on tensors. The functions are
differentiable, so gradients can be taken with respect to the official tensors too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from checkpoints.reading import read_weights
from graftwork.errors import WeightsError

__all__ = ["KeyMap", "Report", "Stack", "linear_of_conv", "load_official", "read_weights"]

WRAPPERS = r"^(module\.|_orig_mod\.)+"
"""Prefixes that DataParallel, DDP and torch.compile leave before every key."""


def linear_of_conv(weight: Tensor) -> Tensor:
    """The Linear weight [out, in] of a convolution of kernel 1, [out, in, 1]; other ranks pass unchanged."""
    return weight.squeeze(-1) if weight.dim() == 3 and weight.shape[-1] == 1 else weight


@dataclass(frozen=True)
class Stack:
    """Several numbered official tensors that are one tensor in our model.

    Args:
        pattern: Matches the whole (renamed) key; its group ``index`` is the number.
        target: Our key; may refer to other groups of the pattern.
        axis: The new axis along which they are stacked.
    """

    pattern: str
    target: str
    axis: int = 0


@dataclass(frozen=True)
class KeyMap:
    """Translation of an official state dict.

    Args:
        renames: Pairs (pattern, replacement), each applied with ``re.sub`` to the result of the one before.
        converts: Pairs (pattern, function): the function is applied to tensors whose renamed key matches.
        drops: Patterns of official keys that carry nothing a model needs (constant tables, unused modules).
        stacks: Groups of tensors joined into one after renaming.
    """

    renames: tuple[tuple[str, str], ...] = ()
    converts: tuple[tuple[str, Callable[[Tensor], Tensor]], ...] = ()
    drops: tuple[str, ...] = ()
    stacks: tuple[Stack, ...] = ()

    def rename(self, key: str) -> str:
        """Our name of an official key (before stacking)."""
        for pattern, replacement in self.renames:
            key = re.sub(pattern, replacement, key)
        return key

    def is_dropped(self, key: str) -> bool:
        """Whether the official key is left out on purpose."""
        return any(re.search(pattern, key) for pattern in self.drops)

    def translate(self, official: Mapping[str, Tensor]) -> Translation:
        """Rename, convert and stack.

        Args:
            official: Official key to tensor; wrapper prefixes such as ``module.`` are removed.

        Returns:
            Our keys and tensors, with where each came from.
        """
        result = Translation()
        stacked: dict[str, list[tuple[int, Tensor, int]]] = {}
        for full_key, tensor in official.items():
            key = re.sub(WRAPPERS, "", full_key)
            if self.is_dropped(key):
                result.dropped.append(full_key)
                continue
            name = self.rename(key)
            for pattern, function in self.converts:
                if re.search(pattern, name):
                    tensor = function(tensor)
            for stack in self.stacks:
                if match := re.fullmatch(stack.pattern, name):
                    name = match.expand(stack.target)
                    stacked.setdefault(name, []).append((int(match["index"]), tensor, stack.axis))
                    break
            else:
                result.tensors[name] = tensor
            result.sources.setdefault(name, []).append(full_key)
        for name, parts in stacked.items():
            ordered = sorted(parts, key=lambda part: part[0])
            result.tensors[name] = torch.stack([tensor for _, tensor, _ in ordered], dim=ordered[0][2])
        return result


@dataclass
class Translation:
    """A translated state dict: our tensors, the official keys behind each, and the keys dropped on purpose."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    sources: dict[str, list[str]] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Report:
    """What became of every key.

    Args:
        matched: Keys with the same name in both.
        renamed: Our key to the official keys it came from.
        dropped: Official keys left out on purpose.
        missing: Our keys that nothing was found for.
        unexpected: Official keys that nothing in the model wants.
        mismatched: Our key to (found shape, expected shape).
    """

    matched: tuple[str, ...]
    renamed: Mapping[str, tuple[str, ...]]
    dropped: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]

    @property
    def fits(self) -> bool:
        """Whether every tensor of the model was found, in its shape, and none was left over."""
        return not (self.missing or self.unexpected or self.mismatched)

    def summary(self) -> str:
        """One line of counts."""
        counts = {
            "matched": len(self.matched),
            "renamed": len(self.renamed),
            "dropped": len(self.dropped),
            "missing": len(self.missing),
            "unexpected": len(self.unexpected),
        }
        return ", ".join(f"{count} {name}" for name, count in counts.items())

    def problems(self, most: int = 8) -> list[str]:
        """A line per problem, shapes first, at most ``most`` of each kind."""
        lines = [f"{key}: found {_shape(a)}, the model has {_shape(b)}" for key, (a, b) in self.mismatched.items()]
        groups = [lines]
        groups.append([f"missing: {key}" for key in self.missing])
        groups.append([f"unexpected: {key}" for key in self.unexpected])
        shown = []
        for group in groups:
            shown += group[:most]
            if len(group) > most:
                shown.append(f"... and {len(group) - most} more")
        return shown


def _shape(sizes: tuple[int, ...]) -> str:
    return "[" + ", ".join(map(str, sizes)) + "]"


def compare(model: nn.Module, translation: Translation) -> Report:
    """Compare a translated state dict with what the model wants, without loading it."""
    wanted = model.state_dict()
    found = translation.tensors
    both = [name for name in found if name in wanted]
    return Report(
        matched=tuple(name for name in both if translation.sources[name] == [name]),
        renamed={name: tuple(translation.sources[name]) for name in both if translation.sources[name] != [name]},
        dropped=tuple(translation.dropped),
        missing=tuple(name for name in wanted if name not in found),
        unexpected=tuple(key for name in found if name not in wanted for key in translation.sources[name]),
        mismatched={
            name: (tuple(found[name].shape), tuple(wanted[name].shape))
            for name in both
            if found[name].shape != wanted[name].shape
        },
    )


def load_official(
    model: nn.Module, state_dict: Mapping[str, Tensor], keymap: KeyMap, *, strict: bool = True, where: str = ""
) -> Report:
    """Load an official state dict into our model.

    Args:
        model: Our model, built with the hyper-parameters of the checkpoint.
        state_dict: Official key to tensor.
        keymap: The map of the system the checkpoint belongs to.
        strict: Whether missing or unexpected keys are an error; a wrong shape always is.
        where: The file, for the error.

    Returns:
        What became of every key.

    Raises:
        WeightsError: A shape differs, or (when strict) a key is missing or left over; shapes are listed first. The
            model is untouched then.
    """
    translation = keymap.translate(state_dict)
    report = compare(model, translation)
    if report.mismatched or (strict and not report.fits):
        lines = "\n".join(f"- {line}" for line in report.problems())
        raise WeightsError(
            f"the weights do not fit {type(model).__name__} ({report.summary()}):\n{lines}\n",
            where=where,
            mend="Give the model the sizes the checkpoint was trained with",
        )
    wanted = model.state_dict()
    model.load_state_dict({k: v for k, v in translation.tensors.items() if k in wanted}, strict=False)
    return report
