"""One model of every class of timm with features: which give maps of any image, which of one size, which classify.

On the meta device, by shapes; ``python -m pytest tests/backbones/vision/test_timm_classes.py`` takes minutes.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import timm
import torch

from backbones.vision import create_backbone, create_classifier
from graftwork.errors import ConfigError, ShapeError

pytestmark = pytest.mark.slow


def names(text: str) -> list[str]:
    return text.split()


ANY_SIZE = names("""
caformer_s18 convmixer_768_32 cpubone_nano cs3darknet_focus_s csatv2 cspnext_tiny davit_small deepseek_vit_412m
deit_tiny_distilled_patch16_224 densenet121 dla46_c dpn48b edgenext_xx_small efficientvim_m1 efficientvim_m1_dist
efficientvit_b0 efficientvit_l1 efficientvit_m0 ese_vovnet19b_slim eva02_tiny_patch14_224 fasternet_t0 fastvit_t8
focalnet_small_lrf gemma4_vit_167m ghostnet_050 hgnet_tiny hieradet_small hrnet_w18 iformer_t inception_next_atto
inception_resnet_v2 inception_v3 inception_v4 lcnet_035 lcnetv2_small legacy_seresnet18 legacy_xception lowformer_b0
mobilenetv5_base mvitv2_base naflexvit_base_patch16_gap nasnetalarge nextvit_base pnasnet5large pvt_v2_b0 qwen3_vit_88m
rdnet_tiny regnetx_002 repghostnet_050 repvit_m0_9 resnetv2_18 rexnet_100 samvit_base_patch16 selecsls42b sequencer2d_l
shvit_s1 starnet_s050 swiftformer_xs swin_s3_base_224 swinv2_cr_small_224 swinv2_small_window8_256 test_byobnet
test_convnext test_efficientnet test_mambaout test_nfnet test_resnet test_vit tiny_vit_5m_224 tresnet_m
twins_pcpvt_base vgg11 xception41 xcit_nano_12_p8_224
""")
ONE_SIZE = names("""
beit_base_patch16_224 cait_xxs24_224 coat_tiny convit_tiny efficientformer_l1 efficientformerv2_s0 gcvit_tiny
gmlp_ti16_224 hiera_base_224 levit_128 levit_256d nest_small pit_ti_224 test_coatnet test_vit_relpos
tnt_s_legacy_patch16_224 visformer_tiny volo_d1_224
""")
ONLY_MAPS = ["deepseek_vit_412m_enc", "gemma4_vit_167m_enc", "mobilenetv5_300m_enc", "qwen3_vit_88m_enc"]
ONLY_CLASSES = ["crossvit_tiny_240"]
READS_VALUES = ("gemma4",)
"""They look at numbers on their way, so shapes alone do not carry them; images are padded to multiples of 768."""


def without_memory(name):
    return nullcontext() if name.startswith(READS_VALUES) else torch.device("meta")


def assert_maps(backbone, height, width):
    device = next(backbone.parameters()).device
    with torch.inference_mode():
        maps = backbone(torch.zeros(1, 3, height, width, device=device))
    sides = [(-(-height // stride), -(-width // stride)) for stride in backbone.strides]
    expected = [(1, channels, *size) for channels, size in zip(backbone.channels, sides, strict=True)]
    assert [tuple(level.shape) for level in maps] == expected and maps


@pytest.mark.parametrize("name", [*ANY_SIZE, *ONLY_MAPS])
def test_maps_of_any_image(name):
    with without_memory(name):
        backbone = create_backbone(f"timm:{name}").eval()
    for size in ((128, 96), (33, 100)):
        assert_maps(backbone, *size)


@pytest.mark.parametrize("name", ONE_SIZE)
def test_maps_of_one_size(name):
    with torch.device("meta"):
        backbone = create_backbone(f"timm:{name}").eval()
    assert_maps(backbone, *backbone.sizes.only)
    with pytest.raises(ShapeError, match="the only size that it takes"):
        backbone(torch.zeros(1, 3, 48, 64, device="meta"))


@pytest.mark.parametrize("name", ONLY_CLASSES)
def test_no_maps_of_these(name):
    with pytest.raises(ConfigError, match="it can only classify"):
        create_backbone(f"timm:{name}")


@pytest.mark.parametrize("name", [*ANY_SIZE, *ONE_SIZE, *ONLY_CLASSES])
def test_classes(name):
    with torch.device("meta"):
        classifier = create_classifier(f"timm:{name}", classes=7).eval()
    size = classifier.backbone.blueprint.native
    with torch.inference_mode():
        assert classifier(torch.zeros(1, 3, *size, device="meta")).shape == (1, 7)


@pytest.mark.parametrize("name", ONLY_MAPS)
def test_no_classes_of_these(name):
    with torch.device("meta"), pytest.raises(ConfigError, match=r"head of timm's .* cannot be told"):
        create_classifier(f"timm:{name}", classes=7)


def test_every_class_is_tried():
    tried = {*ANY_SIZE, *ONE_SIZE, *ONLY_MAPS, *ONLY_CLASSES}
    files = [timm.list_models(module=module) for module in timm.list_modules()]
    with torch.device("meta"):
        classes = {type(timm.create_model(name)) for name in tried}
        others = {type(timm.create_model(models[0])) for models in files if models}
    assert len(classes) == len(tried) == 97
    assert not others - classes
