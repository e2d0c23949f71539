"""Scores of images on devices that know no float64, as Apple's GPUs: the same as anywhere else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from apps.superres.attribution import diffusion_index
from apps.superres.metrics import RestorationMetrics
from datamodules.superres.info import RestorationInfo


class OnApple(Tensor):
    """A tensor that says it is on an Apple GPU, and refuses float64 as these do until it is brought to the CPU."""

    device = property(lambda self: torch.device("mps"))

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(function, types, args, kwargs or {})
        devices = [part for part in args[1:] if isinstance(part, torch.device)]
        if function is Tensor.cpu or torch.device("cpu") in devices:
            return result.as_subclass(Tensor)
        if isinstance(result, cls) and result.dtype == torch.float64:
            raise TypeError("MPS knows no float64")
        return result


def test_the_stand_in_refuses_what_apples_gpus_refuse():
    apple = torch.rand(3).as_subclass(OnApple)
    assert (apple + 1).device.type == "mps" and (apple + 1).cpu().double().device.type == "cpu"
    for call in (lambda: apple.double(), lambda: apple.to(torch.float64)):
        try:
            call()
        except TypeError:
            continue
        raise AssertionError("float64")


def test_scores_are_computed_on_the_cpu():
    info = RestorationInfo(scale=1, channels=3, colour="y", border=2, degradation="jpeg")
    truth = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    batch = {"lq": truth * 0.9, "gt": truth, "index": torch.arange(2)}
    plain, apple = RestorationMetrics(info, thorough=True), RestorationMetrics(info, thorough=True)
    plain.update(batch, truth * 0.95)
    apple.update({key: value.as_subclass(OnApple) for key, value in batch.items()}, (truth * 0.95).as_subclass(OnApple))
    assert set(plain.compute()) == {"psnr", "ssim", "psnr_rgb", "ssim_rgb", "psnr_b"}
    assert apple.compute() == plain.compute() and apple.baseline() == plain.baseline()
    assert apple.tables() == plain.tables()


def test_the_diffusion_index_is_computed_on_the_cpu():
    weights = torch.rand(5, 6, generator=torch.Generator().manual_seed(0))
    assert diffusion_index(weights.as_subclass(OnApple)) == diffusion_index(weights)
