"""Weights of timm's models: its files, those of original repositories, other windows and channels, downloads."""

from __future__ import annotations

import urllib.error
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

timm = pytest.importorskip("timm", reason="needs the extra 'vision'")

import huggingface_hub  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from timm.models import adapt_input_conv  # noqa: E402

from backbones.vision import create_backbone, create_classifier  # noqa: E402
from backbones.vision import timm_weights as weights  # noqa: E402
from graftwork.errors import WeightsError  # noqa: E402

QUICK = "timm:test_resnet"


def model(name: str = "test_resnet", **options) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **options).eval()


def images(channels: int = 3, size: int = 64) -> Tensor:
    return torch.randn(1, channels, size, size, generator=torch.Generator().manual_seed(0))


def saved(state: dict[str, Tensor], folder: Path, name: str = "weights.pth") -> Path:
    path = folder / name
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("file", ["weights.pth", "weights.safetensors"])
def test_files_of_timm_load_into_backbones_and_classifiers(file, tmp_path):
    bare = model()
    path = saved(bare.state_dict(), tmp_path, file)
    classifier = create_classifier(QUICK, weights=path).eval()
    level = create_backbone(QUICK, weights=path, out_indices=(1,)).eval()
    with torch.no_grad():
        torch.testing.assert_close(classifier(images()), bare(images()))
        torch.testing.assert_close(level(images())[0], bare.forward_intermediates(images(), indices=[1])[1][0])


def test_our_files_go_round(tmp_path):
    backbone = create_backbone(QUICK, out_indices=(0, 2)).eval()
    again = create_backbone(QUICK, out_indices=(0, 2), weights=saved(backbone.state_dict(), tmp_path)).eval()
    for ours, theirs in zip(again(images()), backbone(images()), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", [QUICK, "shvit_s1"])
def test_our_files_of_more_levels_or_with_a_head_fit_too(name, tmp_path):
    classifier = create_classifier(name, classes=3).eval()
    whole = saved(create_backbone(name).state_dict(), tmp_path, "whole.pth")
    headed = saved(classifier.state_dict(), tmp_path, "headed.pth")
    for path in (whole, headed):
        first = create_backbone(name, out_indices=(0,), weights=path)
        stem = next(iter(first.trunk.state_dict()))
        assert torch.equal(
            first.trunk.state_dict()[stem], torch.load(path)[f"{'backbone.' * (path == headed)}trunk.{stem}"]
        )


def test_a_head_of_other_classes_stays_as_initialised(tmp_path):
    bare = model(num_classes=7)
    path = saved(bare.state_dict(), tmp_path)
    classifier = create_classifier(QUICK, classes=3, weights=path).eval()
    assert classifier(images()).shape == (1, 3)
    with torch.no_grad():
        torch.testing.assert_close(classifier.backbone(images())[-1], bare.forward_features(images()))


def test_other_channels_of_images(tmp_path):
    bare = model()
    path = saved(bare.state_dict(), tmp_path)
    grey = images(1)
    backbone = create_backbone(QUICK, in_channels=1, weights=path).eval()
    with torch.no_grad():
        expected = bare.forward_features(grey.expand(-1, 3, -1, -1))
        torch.testing.assert_close(backbone(grey)[-1], expected, rtol=1e-3, atol=1e-4)
    four = create_backbone(QUICK, in_channels=4, weights=path).trunk.conv1[0].weight
    torch.testing.assert_close(four, adapt_input_conv(4, bare.conv1[0].weight))


def original_swin(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's names back to those of the official repository, where a stage ends with its downsampling."""
    found = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[2:3] == ["downsample"]:
            parts[1] = str(int(parts[1]) - 1)
        found[".".join(parts).replace("head.fc.", "head.")] = tensor
    index = torch.zeros(49, 49, dtype=torch.long)
    return {**found, "layers.0.blocks.0.attn.relative_position_index": index}


def test_files_of_the_swin_repository(tmp_path):
    bare = model("swin_tiny_patch4_window7_224", num_classes=4)
    path = saved({"model": original_swin(bare.state_dict())}, tmp_path)
    classifier = create_classifier("swin_tiny", classes=4, weights=path).eval()
    with torch.no_grad():
        torch.testing.assert_close(classifier(images(size=224)), bare(images(size=224)))


@pytest.mark.parametrize("ours", [False, True])
def test_tables_of_another_window_are_interpolated(ours, tmp_path):
    source = create_backbone("swin_tiny") if ours else model("swin_tiny_patch4_window7_224", num_classes=0)
    path = saved(source.state_dict(), tmp_path)
    backbone = create_backbone("swin_tiny", window=4, weights=path)
    trunk = source.trunk if ours else source
    name = "layers.2.blocks.1.attn.relative_position_bias_table"
    found, table = backbone.trunk.get_parameter(name), trunk.get_parameter(name)
    expected = F.interpolate(table.T.reshape(1, 12, 13, 13), (7, 7), mode="bicubic").reshape(12, 49).T
    torch.testing.assert_close(found, expected)
    same = "layers.2.blocks.1.attn.qkv.weight"
    assert torch.equal(backbone.trunk.get_parameter(same), trunk.get_parameter(same))


def test_tables_of_every_layout():
    smooth = torch.linspace(0, 1, 13)
    square = (smooth[:, None] + smooth)[None]  # one head, 13 x 13, linear in both directions
    wanted = torch.empty(1, 7, 7)
    by_head = weights.fit_table("x.relative_position_bias_table", square, wanted)
    flat = weights.fit_table("x.relative_position_bias_table", square.flatten(1).T, wanted.flatten(1).T)
    assert by_head.shape == (1, 7, 7) and torch.equal(flat.T.view(1, 7, 7), by_head)
    torch.testing.assert_close(by_head[0, 3, 3], square[0, 6, 6])
    biases = weights.fit_table("x.attention_biases", torch.randn(4, 49), torch.empty(4, 64))
    assert biases.shape == (4, 64)
    positions = weights.fit_table("pos_embed", torch.randn(1, 1 + 16, 8), torch.empty(1, 1 + 25, 8))
    assert positions.shape == (1, 26, 8)
    assert weights.fit_table("x.relative_position_bias_table", square, torch.empty(2, 7, 7)) is None
    assert weights.fit_table("x.weight", torch.randn(4, 4), torch.empty(2, 4)) is None


def test_positions_of_another_image_size(tmp_path):
    bare = model("test_vit", num_classes=0)
    path = saved(bare.state_dict(), tmp_path)
    backbone = create_backbone("timm:test_vit", weights=path, image_size=96).eval()
    assert backbone.trunk.pos_embed.shape[1] == 1 + 36
    assert backbone(images(size=96))[-1].isfinite().all()


def test_a_file_of_another_model_is_refused_with_the_first_difference(tmp_path):
    path = saved(model("test_convnext").state_dict(), tmp_path)
    for name in (QUICK, "shvit_s1", "swin_tiny"):
        with pytest.raises(
            WeightsError, match=r"the weights do not fit TimmBackbone: first difference: backbone\.trunk"
        ):
            create_backbone(name, weights=path)


# -- downloads: nothing here reaches for the network ----------------------------------------------------------------


@pytest.fixture
def no_cache(monkeypatch):
    """No file was fetched before, and any try of the client itself is an error of the test."""

    def fetch(**place):
        if not place.get("local_files_only"):
            pytest.fail("the client was asked although nobody answers")
        raise huggingface_hub.errors.LocalEntryNotFoundError("not there")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


def test_without_network_one_sentence_names_the_repository(monkeypatch, no_cache):
    asked = []

    def refuse(request, timeout):
        asked.append((request.full_url, request.method, timeout))
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(weights.urllib.request, "urlopen", refuse)
    with pytest.raises(WeightsError) as caught:
        create_backbone("shvit_s1", pretrained=True)
    assert str(caught.value) == (
        "pretrained: the weights of shvit_s1.in1k cannot be fetched from huggingface.co/timm/shvit_s1.in1k (Name or "
        "service not known). Fetch model.safetensors from there on a machine with network, and pass it as weights=FILE"
    )
    assert len(asked) == 1 and asked[0][1] == "HEAD" and asked[0][2] <= 10


def test_offline_mode_is_respected(monkeypatch, no_cache):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(weights.urllib.request, "urlopen", lambda *_, **__: pytest.fail("asked the network"))
    with pytest.raises(WeightsError, match=r"timm/test_resnet.r160_in1k \(HF_HUB_OFFLINE is set\)"):
        create_backbone(QUICK, pretrained=True)


def test_models_without_published_weights_name_others():
    with pytest.raises(WeightsError, match=r"nobody has published weights of maxvit_pico_rw_256 .* maxvit_nano_rw_256"):
        create_backbone("maxvit_pico", pretrained=True)


def test_files_in_the_cache_need_no_network(monkeypatch, tmp_path):
    bare = model()
    path = saved(bare.state_dict(), tmp_path, "model.safetensors")
    asked = []

    def fetch(**place):
        asked.append(place)
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    monkeypatch.setattr(weights.urllib.request, "urlopen", lambda *_, **__: pytest.fail("asked the network"))
    classifier = create_classifier(QUICK, pretrained=True).eval()
    assert asked == [
        {"repo_id": "timm/test_resnet.r160_in1k", "filename": "model.safetensors", "revision": None}
        | {"local_files_only": True}
    ]
    with torch.no_grad():
        torch.testing.assert_close(classifier(images()), bare(images()))


def test_a_repository_without_safetensors_gives_its_other_file(monkeypatch, tmp_path):
    path = saved(model().state_dict(), tmp_path, "pytorch_model.bin")

    def fetch(**place):
        if place.get("local_files_only"):
            raise huggingface_hub.errors.LocalEntryNotFoundError("not there")
        if place["filename"] == "model.safetensors":
            raise huggingface_hub.errors.EntryNotFoundError("no such file")
        return str(path)

    class Answer:
        def close(self) -> None:
            pass

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(weights.urllib.request, "urlopen", lambda *_, **__: Answer())
    assert create_backbone(QUICK, pretrained=True).trunk is not None


def test_files_with_code_are_refused(monkeypatch, tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save(model(), path)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda **_: str(path))
    with pytest.raises(WeightsError, match="could run code"):
        create_backbone(QUICK, pretrained=True)
