import copy
import functools
import hashlib
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from origin import Answer, origin
from torch import nn
from torch.nn import functional
from torchvision import models as zoo
from torchvision.ops import StochasticDepth

from patholib.base import files
from patholib.base.errors import PathoError
from patholib.data import fetch
from patholib.model import architectures, building, describing, networks, recipes
from patholib.model.recipes import Stage

pytestmark = pytest.mark.heavy

SCRATCH = replace(recipes.BREAKHIS, weights="none", image_size=64, stages=(Stage(0, 0, 1.0),))
SMALL = {
    "resnet18": replace(SCRATCH, arch="resnet18"),
    "efficientnet_b0": replace(recipes.ISIC2019, weights="none", image_size=64, stages=(Stage(0, 0, 1.0),)),
}
BATCHNORM = nn.modules.batchnorm._BatchNorm


_built = functools.cache(building.build)


def _fresh(recipe):
    """A copy with the BatchNorm weights of a trained network, none of which is 0; random ones begin as the identity."""
    model = copy.deepcopy(_built(recipe))
    for module in model.modules():
        if isinstance(module, BATCHNORM):
            nn.init.ones_(module.weight)
    return model


@pytest.fixture(scope="module")
def resnet50():
    return building.build(replace(recipes.as_published("breakhis"), weights="none", image_size=64))


@pytest.fixture(params=SMALL)
def recipe(request):
    return SMALL[request.param]


@pytest.fixture
def images():
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def _step(model, images):
    """One training step; what each tensor of the state was before it."""
    before = copy.deepcopy(model.state_dict())
    for module in model.modules():
        if isinstance(module, StochasticDepth):
            module.p = 0.0  # else a block is now and then left out for every image, and then rightly stays as it is
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    functional.cross_entropy(model.train()(images), torch.arange(len(images)) % 2).backward()
    optimizer.step()
    return before


def _moved(model, before):
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def _frozen_names(model):
    modules = {id(module) for module in model.frozen_modules()}
    return {
        f"{prefix}.{name}": (module, name)
        for prefix, module in model.named_modules()
        if id(module) in modules
        for name in [*dict(module.named_parameters(recurse=False)), *dict(module.named_buffers(recurse=False))]
    }


# What it is


def test_the_blocks_are_named_from_the_image_on(resnet50):
    assert resnet50.block_names[:2] == ("stem", "layer1[0]") and resnet50.block_names[-1] == "layer4[2]"
    efficientnet = _fresh(SMALL["efficientnet_b0"])
    assert efficientnet.block_names == tuple(f"features[{i}]" for i in range(9))


def test_the_heads_are_the_two_that_are_published():
    names = {name: [type(layer).__name__ for layer in _fresh(recipe).head] for name, recipe in SMALL.items()}
    assert names["resnet18"] == ["Dropout", "Linear", "BatchNorm1d", "ReLU", "Dropout", "Linear"]
    assert names["efficientnet_b0"] == ["Dropout", "Linear", "ReLU", "BatchNorm1d", "Dropout", "Linear"]
    head = _fresh(SMALL["efficientnet_b0"]).head
    assert (head[0].p, head[1].out_features, head[4].p, head[5].out_features) == (0.5, 256, 0.5, 8)


def test_a_copy_shares_nothing(recipe, images):
    model = _fresh(recipe)
    twin = copy.deepcopy(model).freeze(3, "frozen")
    logits = model.eval()(images)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert model.trainable_share() == 1 and twin.trainable_share() < 1
    assert torch.equal(model(images), logits)
    assert {id(p) for p in twin.parameters()} == {
        id(p) for b in twin.blocks.values() for m in b for p in m.parameters()
    } | {id(p) for p in twin.head.parameters()}


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(2, 3, 64, 64, dtype=torch.uint8),
        torch.zeros(2, 64, 64, 3),
        torch.zeros(3, 64, 64),
        torch.zeros(2, 1, 64, 64),
    ],
)
def test_what_is_no_batch_of_images_is_refused(wrong):
    with pytest.raises(PathoError, match="floats in") as refusal:
        _fresh(SMALL["resnet18"])(wrong)
    assert refusal.value.code == "bad_images"


def test_an_unknown_block_is_refused_with_the_nearest():
    with pytest.raises(PathoError, match=r"did you mean 'layer4\[1\]'"):
        _fresh(SMALL["resnet18"]).features(torch.zeros(1, 3, 64, 64), "layer4.1")


# Freezing


def test_published_breakhis_trains_seventy_percent_and_not_twenty(resnet50):
    learning = sum(p.numel() for p in resnet50.parameters() if p.requires_grad)
    assert (learning, sum(p.numel() for p in resnet50.parameters())) == (17_160_578, 24_559_170)
    assert resnet50.trainable_share() == pytest.approx(0.699, abs=5e-4)


def test_seven_of_nine_frozen_blocks_leave_28_percent_of_the_backbone():
    model = _fresh(SMALL["efficientnet_b0"]).freeze(7, "drift")
    table = describing.describe(model).set_index("block")
    assert table.loc["backbone", "share"] == pytest.approx(1_129_392 / 4_007_548)
    assert round(table.loc["backbone", "share"], 2) == 0.28


@pytest.mark.parametrize("frozen", [1, 5, 9])
def test_frozen_blocks_do_not_move_in_a_step(recipe, images, frozen):
    model = _fresh(recipe).freeze(frozen, "frozen")
    before = _step(model, images)
    still = set(_frozen_names(model))
    assert still and not still & _moved(model, before)
    assert set(dict(model.named_parameters())) - still <= _moved(model, before)


def test_drift_moves_statistics_only(recipe, images):
    model = _fresh(recipe).freeze(5, "drift")
    before = _step(model, images)
    moved = _frozen_names(model).keys() & _moved(model, before)
    statistics = {name for name in _frozen_names(model) if name.endswith(("running_mean", "running_var", "tracked"))}
    assert moved == statistics


def test_adapt_moves_batchnorm_and_nothing_else(recipe, images):
    model = _fresh(recipe).freeze(5, "adapt")
    before = _step(model, images)
    frozen = _frozen_names(model)
    assert frozen.keys() & _moved(model, before) == {n for n, (m, _) in frozen.items() if isinstance(m, BATCHNORM)}


def test_a_frozen_block_computes_the_same_in_training():
    model = _fresh(SMALL["efficientnet_b0"]).freeze(6, "frozen")
    images = torch.rand(4, 3, 32, 32)
    in_training = model.train().features(images, "features[5]")
    assert torch.equal(in_training, model.train().features(images, "features[5]"))  # no stochastic depth
    assert torch.equal(in_training, model.eval().features(images, "features[5]"))
    assert not model.freeze(6, "drift").eval().training
    assert not torch.equal(in_training, model.train().features(images, "features[5]"))


def test_thawing_gives_everything_back(recipe):
    model = _fresh(recipe).freeze(9, "frozen").freeze(0, "frozen")
    assert model.trainable_share() == 1 and all(module.training for module in model.modules())


def test_freezing_keeps_the_mode(recipe):
    model = _fresh(recipe).eval().freeze(2, "adapt")
    assert not any(module.training for module in model.modules())


def test_freezing_between_backward_and_step_stops_the_step(images):
    model = _fresh(SMALL["resnet18"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model(images).sum().backward()
    model.freeze(9, "frozen")
    before = copy.deepcopy(model.state_dict())
    optimizer.step()
    assert not set(_frozen_names(model)) & _moved(model, before)


@pytest.mark.parametrize("frozen", [-1, 10, 2.0])
def test_an_impossible_freeze_is_refused(frozen):
    with pytest.raises(PathoError) as refusal:
        _fresh(SMALL["resnet18"]).freeze(frozen, "frozen")
    assert refusal.value.code == "bad_freeze"


# Looking at it


def test_the_table_adds_up_and_names_the_sizes(recipe):
    model = _fresh(recipe).freeze(4, "frozen")
    table = describing.describe(model).set_index("block")
    assert list(table.index) == [*model.block_names, "backbone", "head", "model"]
    whole = table.loc[["model"], ["parameters", "trainable"]].sum()
    assert (table.loc[["backbone", "head"], ["parameters", "trainable"]].sum() == whole).all()
    assert (table.loc[[*model.block_names, "head"], ["parameters", "trainable"]].sum() == whole).all()
    assert table.loc["model", "parameters"] == sum(p.numel() for p in model.parameters())
    assert table.loc["model", "share"] == model.trainable_share()
    assert table.loc["backbone", "output"] == ("512 x 2 x 2" if recipe.arch == "resnet18" else "1280 x 2 x 2")


def test_describing_changes_no_state(recipe):
    model = _fresh(recipe).freeze(2, "drift").train()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    torch.manual_seed(5)
    random = torch.get_rng_state()
    describing.describe(model)
    assert torch.equal(torch.get_rng_state(), random)
    assert not _moved(model, before) and [module.training for module in model.modules()] == modes


def test_the_stages_are_listed_with_what_learns_in_each():
    table = describing.describe_stages(recipes.as_published("isic2019"))
    assert table["from epoch"].tolist() == [1, 21, 41, 61, 81]
    assert table["learns from"].tolist() == [f"features[{i}]" for i in (7, 5, 3, 1, 0)]
    assert table["backbone share"].iloc[0] == pytest.approx(1_129_392 / 4_007_548)
    assert table["backbone share"].is_monotonic_increasing and table["backbone share"].iloc[-1] == 1
    assert (table["model share"] >= table["backbone share"]).all()  # the head always learns


def test_an_evaluating_twin_shares_tensors_but_not_the_mode(recipe):
    model = _fresh(recipe)
    twin = networks.evaluating(model)
    assert twin is not model and networks.evaluating(twin) is twin
    assert model.training and not any(module.training for module in twin.modules())
    ours, theirs = ([*m.parameters(), *m.buffers()] for m in (model, twin))
    assert all(a is b for a, b in zip(ours, theirs, strict=True))


# Weights


def test_random_weights_follow_the_seed_and_leave_the_generator_alone(recipe):
    torch.manual_seed(11)
    random = torch.get_rng_state()
    first, again, other = (building.build(recipe, seed).state_dict() for seed in (None, recipe.seed, 9))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [name for name, value in first.items() if value.ndim == 4]
    assert drawn and not any(torch.equal(first[name], other[name]) for name in drawn)


@functools.cache
def _given():
    return zoo.efficientnet_b0(weights=None).state_dict()


@pytest.fixture
def weights():
    return copy.deepcopy(_given())


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A project and a torch.hub folder of the test's own, and a downloader without a network."""
    asked = []

    def download(remote, folder, **how):
        asked.append(remote)
        raise PathoError("download_failed", remote.url, "no network", "Check the network")

    monkeypatch.setattr(files, "project_root", lambda: tmp_path / "project", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(fetch, "fetch", download)
    monkeypatch.delenv("PATHOLIB_WEIGHTS", raising=False)
    return tmp_path, asked


def _official(weights, monkeypatch, tmp_path):
    """Makes random weights pass for torchvision's: a file whose name ends as its digest begins."""
    made = tmp_path / "made.pth"
    torch.save(weights, made)
    name = f"efficientnet_b0-{files.sha256(made)[:8]}.pth"

    _at(f"https://example.org/models/{name}", monkeypatch)
    return made.rename(tmp_path / name)


def _at(address, monkeypatch):
    """Lets the ImageNet weights of EfficientNet-B0 lie at another address."""
    entry = replace(architectures.NETWORKS["efficientnet_b0"], weights=address)
    monkeypatch.setitem(architectures.NETWORKS, "efficientnet_b0", entry)


def _holds(model, weights):
    state = model.net.state_dict()
    return all(torch.equal(state[name], value) for name, value in weights.items() if not name.startswith("classifier."))


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_given_file_becomes_the_backbone_and_is_recorded(tmp_path, weights, ending):
    import safetensors.torch

    path = tmp_path / f"mine.{ending}"
    (torch.save if ending == "pth" else safetensors.torch.save_file)(weights, path)
    model = building.build(replace(SMALL["efficientnet_b0"], weights=str(path)))
    assert _holds(model, weights)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert model.weights_source == {"kind": "file", "file": path.name, "sha256": digest}
    scratch = building.build(SMALL["efficientnet_b0"])
    assert torch.equal(model.head[1].weight, scratch.head[1].weight)  # the head is the seed's either way
    assert scratch.weights_source == {"kind": "none", "file": None, "sha256": None}


def test_a_relative_path_counts_from_the_project_too(places, weights):
    path = places[0] / "project" / "data" / "mine.pth"
    path.parent.mkdir(parents=True)
    torch.save(weights, path)
    assert _holds(building.build(replace(SMALL["efficientnet_b0"], weights="data/mine.pth")), weights)


def test_weights_of_another_network_are_refused_with_the_differences(tmp_path):
    weights = zoo.resnet18(weights=None).state_dict()
    weights["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    weights["bn1.weight"][3] = torch.nan
    weights["extra.weight"] = weights.pop("layer1.0.conv1.weight")
    torch.save(weights, tmp_path / "odd.pth")
    with pytest.raises(PathoError) as refusal:
        building.build(replace(SMALL["resnet18"], weights=str(tmp_path / "odd.pth")))
    assert refusal.value.code == "weights_mismatch"
    for part in (
        "conv1.weight is (64, 1, 7, 7) instead of (64, 3, 7, 7)",
        "bn1.weight holds values that are not",
        "extra.weight is unknown",
        "layer1.0.conv1.weight is missing",
    ):
        assert part in refusal.value.reason
    torch.save(_given(), tmp_path / "other.pth")
    with pytest.raises(PathoError, match=r"and [0-9]+ more"):
        building.build(replace(SMALL["resnet18"], weights=str(tmp_path / "other.pth")))


class _Attack:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize("content", [b"", b"not weights", {"epoch": 3}, [1, 2], _Attack()])
def test_what_is_no_state_dict_is_refused_unexecuted(tmp_path, content, capsys):
    path = tmp_path / "bad.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(PathoError) as refusal:
        building.build(replace(SMALL["efficientnet_b0"], weights=str(path)))
    assert refusal.value.code == "weights_unreadable" and "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("place", ["variable: file", "variable: folder", "project", "hub"])
def test_imagenet_weights_are_found_where_they_may_lie(places, weights, monkeypatch, place):
    tmp_path, asked = places
    made = _official(weights, monkeypatch, tmp_path)
    folder = tmp_path / {"project": "project/data/weights", "hub": "hub/checkpoints"}.get(place, "elsewhere")
    folder.mkdir(parents=True)
    path = made.rename(folder / ("renamed.pth" if place == "variable: file" else made.name))
    if place.startswith("variable"):
        monkeypatch.setenv("PATHOLIB_WEIGHTS", str(path if place == "variable: file" else folder))
    model = building.build(replace(SMALL["efficientnet_b0"], weights="imagenet"))
    assert _holds(model, weights) and not asked
    assert model.weights_source == {"kind": "imagenet", "file": path.name, "sha256": files.sha256(path)}


def test_a_damaged_imagenet_file_is_refused(places, weights, monkeypatch):
    made = _official(weights, monkeypatch, places[0])
    content = bytearray(made.read_bytes())
    content[len(content) // 2] ^= 1
    made.write_bytes(content)
    monkeypatch.setenv("PATHOLIB_WEIGHTS", str(places[0]))
    with pytest.raises(PathoError) as refusal:
        building.build(replace(SMALL["efficientnet_b0"], weights="imagenet"))
    assert refusal.value.code == "weights_damaged"


def test_a_file_of_torchvisions_name_is_held_against_it_wherever_it_lies(tmp_path, weights, monkeypatch):
    made = _official(weights, monkeypatch, tmp_path)
    assert _holds(building.build(replace(SMALL["efficientnet_b0"], weights=str(made))), weights)
    torch.save(weights | {"classifier.1.bias": torch.ones(1000)}, made)
    with pytest.raises(PathoError, match="must begin with") as refusal:
        building.build(replace(SMALL["efficientnet_b0"], weights=str(made)))
    assert refusal.value.code == "weights_damaged" and "Copy it again" in refusal.value.remedy


def test_a_given_file_is_held_against_the_digest_beside_it(tmp_path, weights):
    path = tmp_path / "mine-20250101.pth"  # a date is no digest
    torch.save(weights, path)
    recipe = replace(SMALL["efficientnet_b0"], weights=str(path))
    for right in (f"{files.sha256(path)}  {path.name}\n", files.sha256(path).upper()):
        files.write_text(tmp_path / f"{path.name}.sha256", right)
        assert building.build(recipe).weights_source["sha256"] == files.sha256(path)
    files.write_text(tmp_path / f"{path.name}.sha256", f"{'0' * 64}  {path.name}\n")
    with pytest.raises(PathoError) as refusal:
        building.build(recipe)
    assert refusal.value.code == "weights_damaged"


@pytest.fixture
def online(places, weights, monkeypatch):
    """torchvision's file at an address of this machine: (server, folder, content)."""
    tmp_path, _ = places
    monkeypatch.undo()  # the downloader is to be the real one
    monkeypatch.setattr(files, "project_root", lambda: tmp_path / "project")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(fetch, "PAUSE", 0.01)
    for name in ("PATHOLIB_WEIGHTS", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    made = _official(weights, monkeypatch, tmp_path)
    content = made.read_bytes()
    with origin(Answer(content)) as server:
        _at(server.url(made.name), monkeypatch)
        yield server, tmp_path, content


def test_weights_are_fetched_with_a_word_through_a_dropped_connection(online, weights, capsys):
    server, tmp_path, content = online
    server.answers.insert(0, Answer(content, drop=5_000_000))
    recipe = replace(SMALL["efficientnet_b0"], weights="imagenet")
    assert _holds(building.build(recipe), weights)
    out = capsys.readouterr().out
    assert out.startswith(f"downloading {server.url(server.asked[0].path.strip('/'))} to ")
    assert server.spans == [(0, 5_000_000), (5_000_000, len(content))]
    assert [path.name for path in (tmp_path / "hub" / "checkpoints").iterdir()] == [server.asked[0].path.strip("/")]
    assert _holds(building.build(recipe), weights) and len(server.asked) == 2


def test_fetched_weights_of_another_digest_are_refused_and_nothing_starts_from_scratch(online):
    server, tmp_path, content = online
    server.answers[:] = [Answer(content[:-1] + b"x")]
    with pytest.raises(PathoError, match="must begin with") as refusal:
        building.build(replace(SMALL["efficientnet_b0"], weights="imagenet"))
    assert refusal.value.code == "weights_missing"
    left = [path.name for path in (tmp_path / "hub" / "checkpoints").iterdir()]
    assert [Path(name).suffix for name in left] == [".part"]  # of which nothing is known, so the next call starts over


def test_without_a_network_it_stops_within_seconds(online):
    server, _, _ = online
    server.server.server_close()  # nobody listens any more
    began = time.monotonic()
    with pytest.raises(PathoError, match="Connection refused") as refusal:
        building.build(replace(SMALL["efficientnet_b0"], weights="imagenet"))
    assert refusal.value.code == "weights_missing" and time.monotonic() - began < 20
