"""Literal window attention on any device and in any type."""

from __future__ import annotations

import pytest
import torch

from apps.superres.literal import windows_by_products


@pytest.mark.parametrize("shift", [0, 2])
def test_windows_by_products_stay_on_their_device(shift):
    q = torch.empty(1, 8, 8, 2, 4, device="meta")
    assert windows_by_products(q, q, q, window=4, shift=shift).device.type == "meta"
    here = torch.rand(1, 8, 8, 2, 4)  # of the same sizes: what is kept for one device must not serve another
    for dtype in (torch.float32, torch.bfloat16):
        q = here.to(dtype)
        found = windows_by_products(q, q, q, window=4, shift=shift)
        assert found.dtype == dtype and found.isfinite().all()
