"""The ProbSparse mixer: repeatable on demand, equal to softmax for short sequences, clear about what it cannot do."""

from __future__ import annotations

import pytest
import torch

from backbones.sequence import create_mixer
from backbones.sequence.probsparse import ProbSparseMixer
from graftwork.errors import ConfigError, ShapeError


def test_keys_are_drawn_anew_in_training_only():
    torch.manual_seed(0)
    x = torch.randn(2, 200, 16)
    mixer = ProbSparseMixer(16, 2, factor=1)
    assert not torch.equal(mixer(x)[0], mixer(x)[0])
    mixer.eval()
    first = mixer(x)[0]
    torch.manual_seed(1)
    assert torch.equal(mixer(x)[0], first)


@pytest.mark.parametrize("causal", [False, True])
def test_short_sequences_equal_softmax_attention(causal):
    torch.manual_seed(0)
    sparse, full = (create_mixer(name, 16, heads=4, causal=causal).eval() for name in ("probsparse", "softmax"))
    full.load_state_dict(sparse.state_dict())
    x = torch.randn(2, 12, 16)
    torch.testing.assert_close(sparse(x)[0], full(x)[0])


def test_it_reads_a_memory():
    mixer = create_mixer("probsparse", 16, heads=2)
    y, state = mixer(torch.randn(2, 40, 16), memory=torch.randn(2, 70, 16))
    assert y.shape == (2, 40, 16) and state is None


def test_masked_form_does_not_claim_to_be_causal():
    """Which queries are kept depends on later tokens, as in the paper."""
    mixer = create_mixer("probsparse", 16, causal=True)
    assert not mixer.causal and not mixer.supports_cross
    with pytest.raises(ConfigError, match="memory"):
        mixer(torch.randn(2, 6, 16), memory=torch.randn(2, 6, 16))


def test_padding_is_refused():
    mixer, x = create_mixer("probsparse", 16), torch.randn(2, 6, 16)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mixer(x, mask=mask)
    mask[0, -1] = False
    with pytest.raises(ConfigError, match="cannot leave out padded tokens"):
        mixer(x, mask=mask)
    with pytest.raises(ShapeError):
        mixer(x[0])
