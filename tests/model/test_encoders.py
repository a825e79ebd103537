"""Networks of timm compute what timm computes, block by block, and the library takes them as its own."""

import contextlib
import http.server
import sys
import threading
from dataclasses import replace

import pytest
import safetensors.torch
import tiny
import torch
from torch import nn
from torchvision.transforms.functional import normalize

from patholib.base.errors import PathoError
from patholib.deploy import export, exportformat, loading, onnx_export
from patholib.judge import gradcam, heatchecks
from patholib.model import architectures, building, folding, networks, overriding, recipes
from patholib.model.recipes import Stage

timm = pytest.importorskip("timm", reason='networks of timm need the extra: pip install "patholib[encoders]"')
from patholib.model import encoders  # noqa: E402, as the line before

pytestmark = pytest.mark.heavy

RECIPE = replace(recipes.unfrozen(recipes.BREAKHIS), image_size=64, head_width=0)
VIT, DEEP = "timm:test_vit,depth=3", "timm:test_vit"
KINDS = {
    VIT: "class token",
    "timm:test_vit2,depth=2": "average of tokens, registers",
    "timm:test_vit3,depth=2": "attention that pools, registers",
    "timm:vit_small_patch16_dinov3,depth=2,embed_dim=48,num_heads=3": "rotary positions",
    "timm:swin_tiny_patch4_window7_224,embed_dim=24": "channels last",
    "timm:test_convnext": "norm after the average",
    "timm:test_efficientnet": "norms with an activation",
    "timm:test_resnet": "plain",
}


def pair(arch, size=64):
    """The library's network, and timm's with the same weights."""
    torch.manual_seed(0)
    theirs = encoders._sized(arch, size).eval()
    model = building.build(replace(RECIPE, arch=arch, image_size=size))
    model.net.load_state_dict(model.net.named(theirs.state_dict()) | head_of(model))
    return model.eval(), theirs


def head_of(model):
    return {k: v for k, v in model.net.state_dict().items() if k.startswith("head.")}


@pytest.fixture(scope="module", params=KINDS)
def arch(request):
    return request.param


@pytest.fixture(scope="module")
def both(arch):
    return pair(arch)


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))


def refused(call, *args, **given) -> PathoError:
    with pytest.raises(PathoError) as error:
        call(*args, **given)
    return error.value


# --- the network ------------------------------------------------------------------------------------------------------


def test_the_blocks_in_turn_give_what_timm_gives_to_the_last_bit(both, images):
    model, theirs = both
    entry = model.architecture
    with torch.no_grad():
        features = theirs(normalize(images, entry.mean, entry.std))
        assert torch.equal(networks.Encoder(model, lambda x: x)(images), features)
        assert torch.equal(model(images), model.head(features))
    assert entry.channels == features.shape[1] and len(entry.blocks) > 2


def test_features_and_classify_meet_at_any_block(both, images):
    model, _ = both
    with torch.no_grad():
        logits = model(images)
        for name in (*model.block_names, None):
            assert torch.equal(model.classify(model.features(images, name), name), logits), name


def test_every_weight_belongs_to_one_block_or_to_the_head_and_what_is_frozen_learns_nothing(both, images):
    model, theirs = both
    own = [id(p) for block in model.blocks.values() for module in block for p in module.parameters()]
    assert sorted(own + [id(p) for p in model.head.parameters()]) == sorted(map(id, model.parameters()))
    assert len(own) == len(list(theirs.parameters()))
    model.freeze(len(model.block_names) - 1, "frozen").train()
    model(images).sum().backward()
    frozen = {id(p) for module in model.frozen_modules() for p in module.parameters()}
    assert all((p.grad is None) == (id(p) in frozen) for p in model.parameters()) and frozen
    assert not any(module.training for module in model.frozen_modules())
    model.freeze(0, "frozen").eval().zero_grad()


def test_a_copy_for_prediction_gives_the_same(both, images):
    with torch.no_grad():
        torch.testing.assert_close(folding.for_prediction(both[0])(images), both[0](images), rtol=1e-5, atol=1e-5)


def test_the_other_networks_with_shuffled_weights_are_alive(both, images):
    other = heatchecks.shuffled(both[0], images, 1)
    assert torch.isfinite(other(images)).all() and not torch.equal(other(images), both[0](images))


@pytest.mark.parametrize("method", gradcam.METHODS)
def test_heatmaps_are_finite_and_lie_on_the_patches(both, images, method):
    heat = gradcam.heat(both[0], images, method=method)
    side = {"occlusion": 8}.get(method, both[0].features(images).shape[-1])
    assert torch.isfinite(heat.maps).all() and heat.maps.shape[1] == heat.maps.shape[2]
    assert heat.maps.shape[1] in (side, 4)  # 16 patches, with class and register tokens left out


def test_an_export_is_rebuilt_with_the_same_answers(both, arch, images, tmp_path):
    model, _ = both
    export.save_model(tmp_path, model.state_dict(), replace(RECIPE, arch=arch))
    again, manifest = loading.classifier(tmp_path)
    assert torch.equal(again(images), model(images)) and manifest["arch"] == arch
    assert manifest["normalization"] == architectures.of(arch).normalization


@pytest.mark.parametrize("arch", [VIT, pytest.param("timm:test_convnext", marks=pytest.mark.slow)])
def test_onnx_gives_the_same_probabilities(arch, tmp_path):
    pytest.importorskip("onnxruntime", reason='pip install "patholib[onnx]"')
    export.save_model(tmp_path, pair(arch)[0].state_dict(), replace(RECIPE, arch=arch))
    assert onnx_export.to_onnx(tmp_path).is_file()  # refused where they differ by more than 1e-4


# --- heatmaps of tokens -----------------------------------------------------------------------------------------------


def by_hand():
    """A ViT whose tokens are the brightness of their patch, and whose class token is their mean after the last block.

    In the blocks before the last nothing happens. So the logit of class 1 is 8 times the mean brightness of all tokens.
    """
    model, _ = pair(VIT)
    with torch.no_grad():
        for name, parameter in model.net.named_parameters():
            parameter.zero_()
            if name.endswith("patch_embed.proj.weight"):
                parameter[0] = 1 / 768  # of the first channel: the mean of the patch
        last = next(module for module in model.net.steps["blocks[2]"].parts)
        width = last.attn.qkv.in_features
        last.attn.qkv.weight[2 * width :] = torch.eye(width)  # values are the tokens; all keys are alike
        last.attn.proj.weight.copy_(torch.eye(width))
        model.head.weight[1, 0] = 8.0
    for module in list(model.net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.LayerNorm):
                setattr(module, name, nn.Identity())
    model.mean.zero_()
    model.std.fill_(1)
    return model


def test_the_map_of_a_vit_worked_by_hand():
    model, images = by_hand(), torch.zeros(1, 3, 64, 64)
    images[:, :, 16:32, 48:] = 1.0  # the patch in row 1, column 3 of 4 x 4
    images[:, :, 48:, :16] = 0.25  # and in row 3, column 0
    expected = torch.zeros(1, 4, 4)
    expected[0, 1, 3], expected[0, 3, 0] = 8 / 17, 2 / 17  # 17 tokens share the logit, the class token among them
    for method in ("gradcam", "hirescam"):
        heat = gradcam.heat(model, images, [1], method=method)
        torch.testing.assert_close(heat.maps, expected)
    torch.testing.assert_close(model(images)[0, 1], torch.tensor(10 / 17))


@pytest.mark.parametrize("arch", [arch for arch in KINDS if "vit" in arch and "dino" not in arch])
def test_without_positions_the_map_moves_with_the_picture_patch_by_patch(arch):
    model, _ = pair(arch)
    with torch.no_grad():
        model.net.get_parameter("steps.stem.parts.0.net.pos_embed").zero_()
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    maps, moved = (gradcam.heat(model, some, [1]).maps for some in (images, images.roll((16, -32), dims=(2, 3))))
    assert maps.amax() > 0 and maps.std() > 1e-3 * maps.amax()
    torch.testing.assert_close(moved, maps.roll((1, -2), dims=(1, 2)), rtol=1e-3, atol=1e-6)


def test_the_default_block_of_a_small_image_is_the_last_with_patches():
    assert gradcam.default_block(pair(VIT)[0]) == "blocks[1]"


def test_images_of_another_size_are_refused(images):
    error = refused(pair(VIT)[0], torch.rand(1, 3, 96, 96))
    assert error.code == "bad_images" and "64 x 64" in error.reason


# --- weights ----------------------------------------------------------------------------------------------------------


def test_a_file_of_timm_is_read_its_positions_fitted_to_the_images_and_its_classifier_left_out(tmp_path):
    whole = timm.create_model("test_vit", num_classes=7)  # for 160 pixels
    safetensors.torch.save_file(whole.state_dict(), tmp_path / "mine.safetensors")
    model = building.build(replace(RECIPE, arch=DEEP, weights=str(tmp_path / "mine.safetensors"))).eval()
    whole.reset_classifier(0)
    whole.set_input_size(img_size=(64, 64))
    images = torch.rand(2, 3, 64, 64)
    entry = model.architecture
    expected = whole.eval()(normalize(images, entry.mean, entry.std))
    torch.testing.assert_close(networks.Encoder(model, lambda x: x)(images), expected)
    assert model.weights_source["kind"] == "file" and model.head.out_features == 2
    other = replace(RECIPE, arch="timm:test_resnet", weights=str(tmp_path / "mine.safetensors"))
    assert refused(building.build, other).code == "weights_mismatch"


@pytest.mark.parametrize("weights, arch", [("imagenet", DEEP), ("hub", "resnet18")])
def test_weights_that_a_network_cannot_have_are_refused_with_those_it_can(weights, arch):
    error = refused(overriding.overridden, RECIPE, arch=arch, weights=weights)
    assert error.code == "bad_parameter" and "Give weights=" in error.remedy


@contextlib.contextmanager
def hub(monkeypatch, tmp_path, code=404, said="", content=b""):
    """A hub on this machine, which answers every question alike, or gives a file."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200 if content else code)
            for name, value in (
                ("X-Error-Code", said),
                ("X-Repo-Commit", "0" * 40),
                ("ETag", '"e"'),
                ("Content-Length", str(len(content))),
            ):
                self.send_header(name, value)
            self.end_headers()

        def do_GET(self):
            self.do_HEAD()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    import huggingface_hub

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        fetch, place = huggingface_hub.hf_hub_download, f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(
            huggingface_hub,
            "hf_hub_download",
            lambda *args: fetch(*args, endpoint=place, cache_dir=tmp_path / "hub", etag_timeout=5),
        )
        yield
        server.shutdown()


def test_the_hub_is_asked_only_where_that_is_said_and_gives_the_weights(monkeypatch, tmp_path, capsys):
    content = safetensors.torch.save(timm.create_model("test_vit", num_classes=0).state_dict())
    with hub(monkeypatch, tmp_path, content=content):
        model = building.build(replace(RECIPE, arch=DEEP, weights="hub"))
    assert model.weights_source["kind"] == "hub" and "timm/test_vit.r160_in1k" in capsys.readouterr().out


@pytest.mark.parametrize(
    "code, said, remedy",
    [
        (403, "GatedRepo", "Accept its licence at https://huggingface.co/a/b, then log in with `hf auth login`"),
        (401, "RepoNotFound", "log in with `hf auth login`"),
        (404, "EntryNotFound", "give the path as weights"),
    ],
)
def test_what_the_hub_refuses_is_told_with_the_way_out(monkeypatch, tmp_path, code, said, remedy):
    with hub(monkeypatch, tmp_path, code, said):
        error = refused(building.build, replace(RECIPE, arch=DEEP, weights="hub:a/b"))
    assert error.code == "weights_missing" and error.subject == "a/b" and remedy in error.remedy


def test_without_a_network_the_command_is_told_that_fetches_the_file_elsewhere(monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    error = refused(building.build, replace(RECIPE, arch=DEEP, weights="hub"))
    assert error.code == "weights_missing" and "cannot be reached" in error.reason
    assert "`hf download timm/test_vit.r160_in1k model.safetensors`" in error.remedy


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arch, code, said",
    [
        ("timm:test_vitt", "unknown_arch", "'test_vit'"),
        ("timm:hf-hub:owner/name", "unknown_arch", "timm.list_models()"),
        ("timm:local-dir:/tmp", "unknown_arch", "timm.list_models()"),
        ("timm:test_vit,pretrained=1", "bad_parameter", "depth (up to 64)"),
        ("timm:test_vit,depth=65", "bad_parameter", "depth (up to 64)"),
        ("timm:test_vit,depth=1e9", "bad_parameter", "depth (up to 64)"),
        ("timm:test_resnet,depth=3", "bad_parameter", "Change its arguments"),
    ],
)
def test_a_name_that_is_none_is_refused_by_recipes_and_exports(arch, code, said, tmp_path):
    error = refused(replace, RECIPE, arch=arch)
    assert error.code == code and said in error.remedy
    export.save_model(tmp_path, pair(VIT)[0].state_dict(), replace(RECIPE, arch=VIT))
    manifest = exportformat.files.read_json(tmp_path / exportformat.MANIFEST) | {"arch": arch}
    manifest.pop("manifest_sha256")
    manifest["manifest_sha256"] = exportformat.files.digest(manifest)
    exportformat.files.write_json(tmp_path / exportformat.MANIFEST, manifest)
    assert refused(loading.classifier, tmp_path).code in (code, "bad_manifest")


def test_an_argument_reaches_the_network_and_its_normalisation():
    entry = architectures.of("timm:test_vit,depth=2,norm=half")
    assert list(entry.blocks) == ["stem", "blocks[0]", "blocks[1]"] and entry.mean == (0.5, 0.5, 0.5)
    assert architectures.of(DEEP).mean == tuple(timm.get_pretrained_cfg("test_vit").mean)


def test_images_that_are_no_whole_number_of_patches_are_refused_with_the_next_sizes():
    error = refused(overriding.overridden, RECIPE, arch=VIT, image_size=100)
    assert error.code == "bad_parameter" and "96 or 112" in error.remedy


def test_where_timm_is_missing_it_is_told_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    encoders._parsed.cache_clear()
    error = refused(encoders._parsed, "timm:test_vit")
    assert error.code == "not_installed" and 'pip install "patholib[encoders]"' in error.remedy


# --- training ---------------------------------------------------------------------------------------------------------


def test_a_head_is_fitted_and_blocks_are_tuned_and_a_training_that_was_stopped_ends_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("PATHOLIB_CACHE", str(tmp_path / "cache"))
    encoder = timm.create_model("test_vit", num_classes=0, depth=3)
    safetensors.torch.save_file(encoder.state_dict(), tmp_path / "mine.safetensors")
    base = replace(tiny.TINY, image_size=32, head_width=0, stages=(Stage(0, 0, 1.0),), arch=VIT)
    given = {"arch": VIT, "weights": str(tmp_path / "mine.safetensors")}
    head = overriding.overridden(base, train="head", **given)
    fitted, history = tiny.train(tmp_path / "head", head)
    before = building.build(head)
    assert all(torch.equal(v, before.state_dict()[k]) for k, v in fitted.state_dict().items() if "head" not in k)
    assert history["trainable_share"].iloc[0] < 0.01
    tuned = overriding.overridden(base, frozen=2, epochs=2, lr=1e-3, **given)
    model, _ = tiny.train(tmp_path / "tuned", tuned)
    moved = {k.split(".")[2] for k, v in model.state_dict().items() if not torch.equal(v, before.state_dict()[k])}
    assert {"blocks[1]", "blocks[2]"} <= moved and not moved & {"stem", "blocks[0]"}
    with pytest.raises(PathoError, match="resume"):
        tiny.train(tmp_path / "stopped", tuned, max_hours=1e-9)
    again, _ = tiny.train(tmp_path / "stopped", tuned)
    assert tiny.same_bits(again, model)
