"""Model files that are missing, damaged, something else or forged: each is refused, and nothing in them is executed.

Whoever forges a file can renew digests too. `forge` writes both files anew with every digest right, so that what is
refused then is refused for what it says; only a pin, the digest known from elsewhere, finds a forgery that is possible.
"""

import copy
import errno
import json
import os
import reprlib
import shutil
import struct
from pathlib import Path

import hostile
import numpy as np
import pytest
import safetensors.torch
import tiny
import torch

from patholib.base import files
from patholib.base.errors import PathoError
from patholib.deploy import export, exportformat, loading
from patholib.deploy.exportformat import MANIFEST, WEIGHTS
from patholib.judge import novelty
from patholib.model import building

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An exported model of a tiny network."""
    folder = tmp_path_factory.mktemp("whole")
    with tiny.network():
        export.save_model(
            folder,
            building.build(tiny.TINY).state_dict(),
            tiny.TINY,
            run="a run",
            epoch=3,
            threshold=0.4,
            temperature=1.5,
        )
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    """A copy of it to be damaged."""
    return shutil.copytree(whole, tmp_path / "model")


def refusal(path, code, load=loading.load_model, **options) -> PathoError:
    with pytest.raises(PathoError) as stopped, tiny.network():
        load(path, **options)
    assert stopped.value.code == code, stopped.value
    assert str(stopped.value).isprintable()
    return stopped.value


def pin(folder) -> str:
    return files.sha256(folder / WEIGHTS)


def manifest_of(folder) -> dict:
    return json.loads((folder / MANIFEST).read_text())


def renew(folder, manifest) -> None:
    """Writes the manifest with its own digest right."""
    rest = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    (folder / MANIFEST).write_text(json.dumps({**rest, "manifest_sha256": files.digest(rest)}))


def forge(folder, manifest, state=None, content=None) -> None:
    """Writes both files with all digests right; the weights are `state`, or the bytes `content`."""
    facts = {key: value for key, value in manifest.items() if key not in ("weights", "manifest_sha256")}
    if content is None:
        state = safetensors.torch.load((folder / WEIGHTS).read_bytes()) if state is None else state
        content = safetensors.torch.save(state, metadata={exportformat.FACTS: files.digest(facts)})
    (folder / WEIGHTS).write_bytes(content)
    entry = manifest.get("weights")
    if isinstance(entry, dict) and entry.keys() >= {"sha256", "bytes"}:
        entry = entry | {"sha256": pin(folder), "bytes": len(content)}
        if state is not None:
            entry["parameters"] = sum(tensor.numel() for tensor in state.values() if tensor.is_floating_point())
    renew(folder, {key: entry if key == "weights" else value for key, value in manifest.items()})


def everywhere(manifest, **fields) -> dict:
    """The manifest with the fields changed in its recipe too."""
    return manifest | fields | {"recipe": manifest["recipe"] | fields}


def test_a_forgery_of_nothing_is_the_model_itself(folder, whole):
    forge(folder, manifest_of(folder))
    assert (folder / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert manifest_of(folder) == manifest_of(whole)


def test_M01_missing(folder, tmp_path, catalogue):
    catalogue("M01", "a folder that is not there", refusal(tmp_path / "nowhere", "missing_file"))
    (tmp_path / "empty").mkdir()
    catalogue("M01", "a folder without a model", refusal(tmp_path / "empty", "missing_file"))
    (folder / MANIFEST).rename(tmp_path / MANIFEST)
    catalogue("M01", "weights without their manifest", refusal(folder, "missing_file"))
    catalogue("M01", "a manifest without its weights", refusal(tmp_path / MANIFEST, "missing_file"))
    shutil.copy(folder / WEIGHTS, folder / "other.safetensors")
    catalogue("M01", "weights under another name", refusal(folder / "other.safetensors", "missing_file"))


def test_M02_a_folder_or_a_pipe_in_place_of_a_file(folder, catalogue):
    for name in (WEIGHTS, MANIFEST):
        (folder / name).rename(folder / "aside")
        (folder / name).mkdir()
        catalogue("M02", f"a folder called {name}", refusal(folder, "unreadable"))
        refusal(folder / name, "missing_file")
        (folder / name).rmdir()
        if os.name == "posix":
            os.mkfifo(folder / name)
            refusal(folder, "unreadable")
            (folder / name).unlink()
        (folder / "aside").rename(folder / name)
    loading.load_model(folder)


@pytest.mark.parametrize("name", [WEIGHTS, MANIFEST])
def test_M03_a_file_that_must_not_be_read(folder, name, monkeypatch, catalogue):
    opened = Path.open

    def forbidden(path, *args, **options):
        if path.name == name:
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, *args, **options)

    monkeypatch.setattr(Path, "open", forbidden)
    catalogue("M03", f"{name} without the right to read it", refusal(folder, "unreadable"))


def test_M03_a_folder_on_the_way_that_must_not_be_entered(folder, monkeypatch, catalogue):
    def forbidden(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", forbidden)
        error = refusal(folder, "unreadable")
    catalogue("M03", "a model in a folder that must not be entered", error)


def test_M04_empty(folder, catalogue):
    (folder / MANIFEST).write_bytes(b"")
    catalogue("M04", f"an empty {MANIFEST}", refusal(folder, "bad_json"))
    (folder / WEIGHTS).write_bytes(b"")
    catalogue("M04", f"an empty {WEIGHTS}", refusal(folder, "not_safetensors"))


@pytest.mark.parametrize("kind", [*hostile.pickles(Path("marker")), *hostile.torch_files(Path("marker"))])
def test_M05_a_pickle_is_refused_and_not_executed(folder, tmp_path, kind, catalogue):
    marker = tmp_path / "executed"
    content = (hostile.pickles(marker) | hostile.torch_files(marker))[kind]
    (folder / "best.pt").write_bytes(content)
    refusal(folder / "best.pt", "not_safetensors")
    (folder / WEIGHTS).write_bytes(content)
    seen = refusal(folder, "not_safetensors")
    text = content[:1] in b"c(" and content[:2] != b"PK"
    catalogue(
        "M05",
        "a pickle of the old text form"
        if text
        else "a torch file or a pickle that runs code, by its name or in place of the weights",
        seen,
    )
    forge(folder, manifest_of(folder), content=content)  # with every digest right
    refusal(folder, "not_safetensors")
    export.save_model(folder, {"fc.5.weight": torch.zeros(2, 16)}, tiny.TINY)
    (folder / MANIFEST).write_bytes(content)
    refusal(folder, "bad_json")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("a web page", b"<html>not found</html>"),
        ("a pointer of git-lfs", b"version https://git-lfs.github.com/spec/v1\n"),
        ("a manifest", b'{"format": 2}'),
    ],
)
def test_M05_other_files_in_place_of_the_weights(folder, kind, content, catalogue):
    (folder / WEIGHTS).write_bytes(content)
    catalogue("M05", f"{kind} in place of the weights", refusal(folder, "not_safetensors"))


def test_M06_cut_off_at_any_place(folder, catalogue):
    for name, codes in ((WEIGHTS, {"not_safetensors", "weights_damaged"}), (MANIFEST, {"bad_json"})):
        content = (folder / name).read_bytes()
        last = len(content.rstrip())
        for place in np.linspace(0, last - 1, 100).astype(int).tolist():
            (folder / name).write_bytes(content[:place])
            with pytest.raises(PathoError) as stopped:
                loading.load_model(folder)
            assert stopped.value.code in codes
        catalogue("M06", f"{name} cut off", stopped.value)
        (folder / name).write_bytes(content)
    loading.load_model(folder)


def headers(header: dict, size: int) -> dict[str, bytes]:
    """65 attacks on a safetensors header of that meaning and length: what stands before the numbers."""
    text = json.dumps(header, separators=(",", ":")).encode()
    name = "conv1.weight"
    place = header[name]["data_offsets"]
    second = header["fc.5.weight"]["data_offsets"]

    def framed(changed: bytes | dict, length: int | None = None) -> bytes:
        changed = changed if isinstance(changed, bytes) else json.dumps(changed).encode()
        return struct.pack("<Q", len(changed) if length is None else length) + changed

    def edited(**fields) -> bytes:
        return framed(header | {name: header[name] | fields})

    found = {
        f"length {length}": framed(text, length)
        for length in (
            0,
            1,
            2,
            7,
            8,
            size - 8,
            size - 1,
            size + 1,
            size + 8,
            2 * size,
            10**6,
            10**8,
            10**8 + 1,
            2**31 - 1,
            2**31,
            2**32 - 1,
            2**32,
            2**62,
            2**63 - 1,
            2**63,
            2**64 - 8,
            2**64 - 1,
        )
    }
    found |= {
        f"type {kind}": edited(dtype=kind)
        for kind in (
            "F64",
            "F16",
            "BF16",
            "I32",
            "I64",
            "U32",
            "U8",
            "I16",
            "BOOL",
            "C64",
            "F4",
            "F8_E4M3",
            "F8_E8M0",
            "float",
            "",
        )
    }
    found |= {
        f"shape {shape}": edited(shape=shape)
        for shape in (
            [],
            [0],
            [-1, 3, 7, 7],
            [3, 4, 7, 7],
            [588],
            [2**62, 2**62],
            [4.0, 3, 7, 7],
            ["4", 3, 7, 7],
            None,
            {},
        )
    }
    found |= {
        f"offsets {pair}": edited(data_offsets=pair)
        for pair in (
            place[::-1],
            [place[0], place[0]],
            second,
            [0, 10**18],
            [-1, place[1]],
            [place[0], 2**64 - 1],
            [],
            place * 2,
            None,
        )
    }
    return found | {
        "no object": framed(b"{]"),
        "an empty object": framed(b"{}"),
        "a tensor that is a number": framed(header | {name: 0}),
        "a tensor too few": framed({key: value for key, value in header.items() if key != name}),
        "a tensor of another name": framed({key + "x" * (key == name): value for key, value in header.items()}),
        "a hostile name": framed({"\x1b[31m" * (key == name) + key: value for key, value in header.items()}),
        "a hostile name of nothing": framed(header | {"\x1b[2J": header[name] | {"data_offsets": [0, 10**18]}}),
        "a head of another name": framed({key.replace("fc.5.w", "fc.x.w"): v for key, v in header.items()}),
        "no metadata": framed({key: value for key, value in header.items() if key != "__metadata__"}),
    }


def test_M07_an_attacked_header(folder, whole, catalogue):
    """Refused by the digest; and, where that was renewed too, by the parser or for what it says."""
    content = (folder / WEIGHTS).read_bytes()
    size = int.from_bytes(content[:8], "little")
    attacks = headers(json.loads(content[8 : 8 + size]), size)
    assert len(attacks) == 65
    for name, start in attacks.items():
        attacked = start + content[8 + size :]
        shutil.copytree(whole, folder, dirs_exist_ok=True)
        (folder / WEIGHTS).write_bytes(attacked)
        with pytest.raises(PathoError) as stopped:
            loading.load_model(folder)
        assert stopped.value.code == "weights_damaged", name
        forge(folder, manifest_of(folder), content=attacked)
        with pytest.raises(PathoError) as forged, tiny.network():
            loading.classifier(folder)
        assert forged.value.code in (
            "weights_damaged",
            "wrong_weights",
            "bad_manifest",
            "manifest_changed",
            "class_mismatch",
        ), name
        assert str(forged.value).isprintable(), name
    catalogue("M07", "65 attacks on the header: lengths from 0 to 2^64, types, shapes and offsets", stopped.value)
    catalogue("M07", "the same with every digest renewed", "refused: all of them")


def test_M08_a_flipped_bit_at_300_places(folder, catalogue):
    rng = np.random.default_rng(0)
    refused = 0
    for name in (WEIGHTS, MANIFEST):
        content = (folder / name).read_bytes()
        header = 8 + int.from_bytes(content[:8], "little") if name == WEIGHTS else 0
        for i, place in enumerate(rng.integers(0, len(content), 150)):
            place = place % header if header and i < 50 else place  # of the weights a third in the header
            flipped = bytes([content[place] ^ 1 << int(rng.integers(8))])
            (folder / name).write_bytes(content[:place] + flipped + content[place + 1 :])
            with pytest.raises(PathoError):
                loading.load_model(folder)
            refused += 1
        (folder / name).write_bytes(content)
    loading.load_model(folder)
    catalogue("M08", "one bit flipped, at 300 random places of both files", f"refused: {refused} of 300")


def test_M09_another_architecture(folder, whole, catalogue):
    manifest = manifest_of(whole)
    for given, changed, code in (
        ("an architecture that nobody knows", everywhere(manifest, arch="vgg16"), "unknown_arch"),
        ("an architecture other than the recipe's", manifest | {"arch": "resnet50"}, "bad_manifest"),
        ("another architecture of the same family", everywhere(manifest, arch="resnet50"), "wrong_weights"),
        ("another architecture with another head", everywhere(manifest, arch="efficientnet_b0"), "class_mismatch"),
    ):
        forge(folder, changed)
        catalogue("M09", given, refusal(folder, code, loading.classifier))


def test_M10_another_number_of_classes(folder, whole, catalogue):
    manifest, state = manifest_of(whole), loading.load_model(whole)[0]
    three = state | {"fc.5.weight": torch.zeros(3, 16), "fc.5.bias": torch.zeros(3)}
    with pytest.raises(PathoError) as stopped:
        export.save_model(folder, three, tiny.TINY)
    assert stopped.value.code == "class_mismatch"
    catalogue("M10", "exporting three outputs with a recipe of two classes", stopped.value)
    forge(folder, manifest, three)
    catalogue("M10", "three outputs for two classes", refusal(folder, "class_mismatch"))
    forge(folder, everywhere(manifest, classes=["benign", "malignant", "other"]), state)
    catalogue("M10", "three classes for two outputs", refusal(folder, "class_mismatch"))
    forge(folder, everywhere(manifest, classes=["benign"], positive=None), state)
    catalogue("M10", "a single class", refusal(folder, "bad_manifest"))
    forge(folder, manifest, {name: tensor for name, tensor in state.items() if not name.startswith("fc.")})
    catalogue("M10", "weights without a head", refusal(folder, "class_mismatch"))
    forge(folder, everywhere(manifest, classes=["benign", "benign"]), state)
    catalogue("M10", "two classes of one name", refusal(folder, "bad_manifest"))


def test_M11_the_order_of_the_classes(folder, whole, catalogue):
    manifest, known = manifest_of(whole), pin(whole)
    swapped = ["malignant", "benign"]
    (folder / MANIFEST).write_text(json.dumps(manifest | {"classes": swapped}))
    catalogue("M11", "classes swapped", refusal(folder, "manifest_changed"))
    renew(folder, manifest | {"classes": swapped})
    catalogue("M11", "classes swapped, the manifest's digest renewed", refusal(folder, "bad_manifest"))
    renew(folder, everywhere(manifest, classes=swapped))
    seen = refusal(folder, "manifest_changed")
    catalogue("M11", "classes swapped in the recipe too, the manifest's digest renewed", seen)
    forge(folder, everywhere(manifest, classes=swapped))
    assert loading.load_model(folder)[1]["classes"] == swapped  # a possible model: nothing in it can tell
    seen = refusal(folder, "pin_mismatch", sha256=known)
    catalogue("M11", "classes swapped, every digest renewed, and the SHA-256 known from elsewhere given", seen)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("a terminal code", "be\x1b[31mnign"),
        ("a line end", "benign\n"),
        ("a turned direction", "\u202enigneb"),
        ("an empty name", ""),
        ("half a character", "\ud800"),
        ("a number for a name", 3),
        ("a list", ["benign"]),
    ],
)
def test_M12_class_names(folder, kind, name, catalogue):
    forge(folder, everywhere(manifest_of(folder), classes=[name, "malignant"]))
    catalogue("M12", f"class names with {kind}", refusal(folder, "bad_manifest"))


@pytest.mark.parametrize("found", [1, 2, 5, 3.0, "3", True, None, [3], {}, 10**300], ids=reprlib.repr)
def test_M13_another_format(folder, found, catalogue):
    forge(folder, manifest_of(folder) | {"format": found})
    catalogue("M13", "a manifest of an older, a newer or no format", refusal(folder, "model_format"))
    for content in ("[]", "3", "null", '"text"'):
        (folder / MANIFEST).write_text(content)
        refusal(folder, "model_format")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_M14_weights_that_are_not_finite(folder, whole, value, catalogue):
    state = loading.load_model(whole)[0]
    state["bn1.running_var"][2] = value
    with pytest.raises(PathoError) as stopped:
        export.save_model(folder, state, tiny.TINY)
    assert stopped.value.code == "nonfinite_weights" and "bn1.running_var" in stopped.value.reason
    catalogue("M14", "exporting weights that are NaN or infinite", stopped.value)
    assert (folder / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    forge(folder, manifest_of(folder), state)
    catalogue("M14", "weights that are NaN or infinite", refusal(folder, "nonfinite_weights"))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.float8_e4m3fn])
def test_M14_weights_of_another_kind_of_number(folder, whole, kind, catalogue):
    """Loaded into a network they would be rounded or taken for other numbers in silence."""
    state = loading.load_model(whole)[0]
    state["fc.5.weight"] = state["fc.5.weight"].to(kind)
    with pytest.raises(PathoError, match="wrong_weights"):
        export.save_model(folder, state, tiny.TINY)
    forge(folder, manifest_of(folder), state)
    catalogue("M14", "weights of another kind of number", refusal(folder, "wrong_weights"))


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        ("an image size out of range", {"image_size": 16}),
        ("an image size out of range", {"image_size": 10**9}),
        ("an image size that is no whole number", {"image_size": 64.5}),
        ("an image size that is no whole number", {"image_size": "64"}),
        ("an image size that is no whole number", {"image_size": True}),
        ("a width of the head that the weights do not have", {"head_width": 8}),
        ("a fit that nobody knows", {"fit": "stretch"}),
    ],
)
def test_M15_settings_that_cannot_be(folder, given, fields, catalogue):
    changed = everywhere(manifest_of(folder), **fields)
    if "head_width" in fields:
        changed["head"] = changed["head"] | {"width": 8}
        del changed["head_width"]
    forge(folder, changed)
    seen = refusal(folder, "wrong_weights" if "head_width" in fields else "bad_manifest")
    catalogue("M15", given, seen)


@pytest.mark.parametrize(
    "norm",
    [
        {"mean": [0, 0, 0], "std": [1, 1, 1]},
        {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0, 0.225]},
        {"mean": [0.485, 0.456], "std": [0.229, 0.224]},
        {"mean": [float("nan")] * 3, "std": [0.229, 0.224, 0.225]},
        {"mean": 0.5, "std": 0.5},
        {},
        {"mean": ["0.485", "0.456", "0.406"], "std": None},
    ],
)
def test_M15_P18_a_normalisation_that_is_not_the_models_own(folder, norm, catalogue):
    forge(folder, manifest_of(folder) | {"normalization": norm})
    for name in ("M15", "P18"):
        catalogue(name, "a mean or deviation other than the model's own", refusal(folder, "bad_manifest"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threshold", -0.1),
        ("threshold", 1.5),
        ("threshold", float("nan")),
        ("threshold", "0.4"),
        ("threshold", True),
        ("threshold", 10**400),
        ("temperature", 0),
        ("temperature", -1),
        ("temperature", float("inf")),
        ("temperature", []),
        ("epoch", 0),
        ("epoch", 2.5),
        ("epoch", "3"),
        ("smallest_side", 0),
        ("smallest_side", 0.5),
    ],
)
def test_M15_numbers_that_cannot_be(folder, name, value, catalogue):
    forge(folder, manifest_of(folder) | {name: value})
    catalogue("M15", f"an impossible {name}", refusal(folder, "bad_manifest"))


@pytest.mark.parametrize(
    "changed", [{"temperature": 1.4}, {"threshold": None}, {"positive": "benign"}, {"threshold": True}]
)
def test_M15_a_decision_that_is_not_the_one_applied(folder, changed, catalogue):
    decision = {"temperature": 1.5, "threshold": 0.4, "positive": "malignant", "rule": "sensitivity >= 0.95"}
    manifest = manifest_of(folder) | {"decision": decision}
    forge(folder, manifest)
    loading.load_model(folder)
    forge(folder, manifest | {"decision": decision | changed})
    catalogue("M15", "a decision other than the temperature and threshold", refusal(folder, "bad_manifest"))
    forge(folder, manifest | {"decision": decision | {"rule": "\x1b[2J"}})
    refusal(folder, "bad_manifest")


@pytest.mark.parametrize(
    "shares",
    [
        {"benign": 0.5},
        {"benign": 0.5, "malignant": 0},
        {"benign": 0.5, "malignant": float("nan")},
        {"benign": 0.5, "malignant": "0.5"},
        {"benign": True, "malignant": 0.5},
        [0.5, 0.5],
        0.5,
        None,
        {},
    ],
)
@pytest.mark.parametrize("name", ["shares", "correction"])
@pytest.mark.parametrize("averaged", [False, True])
def test_M15_shares_that_nothing_can_be_divided_by(folder, shares, name, averaged, catalogue):
    decision = {"temperature": 1.5, "threshold": 0.4, "positive": "malignant"}
    manifest = manifest_of(folder) | {"temperature": 1.5, "threshold": 0.4}

    def forged(values):
        one = decision | {name: values}
        forge(folder, manifest | {"decision": decision | {"averaged": one} if averaged else one})

    forged({"benign": 0.3, "malignant": 0.7})
    loading.load_model(folder)
    forged(shares)
    catalogue("M15", "a decision other than the temperature and threshold", refusal(folder, "bad_manifest"))


@pytest.mark.parametrize(
    "changed",
    [
        {"bias": {"benign": 0.1}},
        {"bias": {"benign": float("nan"), "malignant": 0.1}},
        {"bias": [0.1, -0.1]},
        {"patient": {"sex": {"female": {"benign": 0.1}}}},
        {"patient": [0.1]},
        {"patient": {"sex": 0.1}},
        {"image_alone": {"temperature": 0, "threshold": 0.4}},
        {"promise": {"words": "\x1b[2J"}},
        {"sets": {"thresholds": {"benign": 0.1, "malignant": 0.2}}},
        {"sets": {"thresholds": {"benign": 0.1}, "words": "held"}},
        {"sets": {"thresholds": {"benign": 0.1, "malignant": 1.2}, "words": "held"}},
        {"averaged": 0.5},
        {"averaged": {"temperature": 1.5}},
        {"averaged": {"temperature": 0, "threshold": 0.4}},
        {"averaged": {"temperature": "1.5", "threshold": 0.4}},
        {"averaged": {"temperature": 1.5, "threshold": 1.4}},
        {"averaged": {"temperature": 1.5, "threshold": True}},
    ],
)
def test_M15_a_calibration_that_cannot_be(folder, changed, catalogue):
    decision = {"temperature": 1.5, "threshold": 0.4, "positive": "malignant"}
    averaged = decision | {"bias": {"benign": -0.1, "malignant": 0.1}}
    averaged |= {"sets": {"thresholds": {"benign": 0.0, "malignant": 1.0}, "words": "held"}}
    manifest = manifest_of(folder) | {"temperature": 1.5, "threshold": 0.4}
    forge(folder, manifest | {"decision": averaged | {"averaged": averaged}})
    loading.load_model(folder)
    forge(folder, manifest | {"decision": decision | changed})
    catalogue("M15", "a decision other than the temperature and threshold", refusal(folder, "bad_manifest"))


@pytest.mark.parametrize("name", exportformat.ORIGIN)
def test_M15_an_origin_that_is_no_text(folder, name, catalogue):
    origin = manifest_of(folder)["origin"]
    for value in (None, 3, ["x"], "\u202e"):
        forge(folder, manifest_of(folder) | {"origin": origin | {name: value}})
        catalogue("M15", "an origin that is no text, or has control characters", refusal(folder, "bad_manifest"))


FAMILIAR = novelty.learn(tiny.image_set(train=40, val=20)).to_json()


@pytest.mark.parametrize(
    "changed",
    [
        {"features": ["red"]},
        {"mean": []},
        {"mean": FAMILIAR["mean"][:-1]},
        {"scale": [0.0] * len(FAMILIAR["scale"])},
        {"scale": [float("nan")] * len(FAMILIAR["scale"])},
        {"precision": FAMILIAR["precision"][:-1]},
        {"precision": [[-value for value in row] for row in FAMILIAR["precision"]]},
        {"precision": [[1, *row[1:]] for row in FAMILIAR["precision"]]},
        {"precision": "x"},
        {"precision": [[10**400]]},
        {"limit": 0},
        {"limit": float("inf")},
        {"limit": None},
        {"limit": True},
        {"limit": "1"},
        {"colourless": 2},
        {"colourless": None},
        {"trained": 0},
        {"trained": 1.5},
        {"validated": -1},
        {"validated": True},
        {"kept": 1.5},
    ],
    ids=reprlib.repr,
)
def test_M15_an_impossible_novelty(folder, changed, catalogue):
    forge(folder, manifest_of(folder) | {"novelty": FAMILIAR})
    assert novelty.from_json(loading.load_model(folder)[1]["novelty"]).limit == FAMILIAR["limit"]
    forge(folder, manifest_of(folder) | {"novelty": FAMILIAR | changed})
    catalogue("M15", "an impossible account of the training images", refusal(folder, "bad_manifest"))
    for name in changed:
        forge(folder, manifest_of(folder) | {"novelty": {k: v for k, v in FAMILIAR.items() if k != name}})
        refusal(folder, "bad_manifest")


def test_M15_every_missing_field_is_named(folder, whole, catalogue):
    manifest = manifest_of(whole)
    for name in exportformat.FIELDS:
        forge(folder, {key: value for key, value in manifest.items() if key != name})
        assert f"{name} is missing" in refusal(folder, "bad_manifest").reason
    forge(folder, {"format": exportformat.FORMAT})
    seen = refusal(folder, "bad_manifest")
    assert all(f"{name} is missing" in seen.reason for name in exportformat.FIELDS)
    catalogue("M15", "a manifest without its fields", seen)


def test_M16_a_digest_known_from_elsewhere(folder, whole, catalogue):
    known = pin(whole)
    for given in (known, known.upper(), None):
        assert loading.load_model(folder, sha256=given)[1] == manifest_of(whole)
    for load in (loading.load_model, loading.classifier):
        seen = refusal(folder, "pin_mismatch", load, sha256="0" * 64)
    catalogue("M16", "weights of another SHA-256 than the one given", seen)
    for given in ("", 0, known[:16], known + "0", "g" * 64, f" {known}", f"{known}\n"):
        seen = refusal(folder, "bad_parameter", sha256=given)
    catalogue("M16", "a SHA-256 that is empty, cut off or none", seen)
    state = loading.load_model(whole)[0]
    state["fc.5.bias"][0] += 1
    forge(folder, manifest_of(whole), state)
    loading.load_model(folder)
    refusal(folder, "pin_mismatch", sha256=known)


POOL = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2.5,
    1e308,
    10**400,
    float("nan"),
    float("inf"),
    "",
    "x",
    "\x1b[2J",
    "\ud800",
    "a" * 10_000,
    [],
    [None],
    [[[]]],
    ["benign", 1],
    {},
    {"a": 1},
    {"a": {"b": []}},
    "resnet18",
    "0" * 64,
)


def mutated(manifest: dict, rng) -> dict:
    """The manifest with one value, wherever it stands, exchanged, nudged, removed, renamed or swapped with another."""
    changed, nodes = copy.deepcopy(manifest), []

    def walk(parent):
        for key in list(parent) if isinstance(parent, dict) else range(len(parent)):
            nodes.append((parent, key))
            if isinstance(parent[key], (dict, list)):
                walk(parent[key])

    walk(changed)
    parent, key = nodes[rng.integers(len(nodes))]
    value, way = parent[key], rng.integers(8)
    if way == 0:
        del parent[key]
    elif way == 1 and isinstance(parent, dict):
        parent[f"{key}_"] = parent.pop(key)
    elif way == 2:
        other, place = nodes[rng.integers(len(nodes))]
        parent[key] = copy.deepcopy(other[place])
    elif way == 3:
        parent[key] = [value, value]
    elif way == 4 and isinstance(value, (int, float)):
        parent[key] = value + (1 if rng.integers(2) else -0.5)
    elif way == 5 and isinstance(value, str):
        parent[key] = value[::-1] + "\u202e" * int(rng.integers(2))
    else:
        parent[key] = POOL[rng.integers(len(POOL))]
    return changed


def test_M15_300_random_changes_with_their_digests_renewed(folder, whole, catalogue):
    """With the manifest's own digest renewed, each is refused; with every digest, what loads is the same model."""
    manifest, rng = manifest_of(whole), np.random.default_rng(0)
    state = loading.load_model(whole)[0]
    facts = [name for name in exportformat.FIELDS if name in exportformat.of_recipe(tiny.TINY)]
    done = loaded = 0
    with tiny.network():
        while done < 300:
            changed = mutated(manifest, rng)
            if files.digest(changed) == files.digest(manifest) or list(changed) == ["manifest_sha256"]:
                continue
            done += 1
            shutil.copytree(whole, folder, dirs_exist_ok=True)
            if changed.get("manifest_sha256") == manifest["manifest_sha256"]:  # else that was what changed
                renew(folder, changed)
                with pytest.raises(PathoError):
                    loading.load_model(folder)
            forge(folder, changed, state)
            try:
                model, found = loading.classifier(folder)
            except PathoError as error:
                assert str(error).isprintable()
                continue
            loaded += 1
            assert all(torch.equal(tensor, state[name]) for name, tensor in model.net.state_dict().items())
            assert all(found[name] == manifest[name] for name in facts)
    assert 20 < loaded < 150  # the rest says nothing of the model: a note, the rate it was trained with
    catalogue("M15", "300 random changes of the manifest with its digest renewed", "refused: all of them")
    catalogue(
        "M15",
        "300 random changes of the manifest with every digest renewed",
        "refused, or the same model where it says nothing of the model",
    )


def test_a_manifest_nested_without_end_is_refused(folder):
    for depth in (100, 900, 950, 980, 990, 1000, 100_000):
        (folder / MANIFEST).write_text('{"format": 3, "notice": ' + "[" * depth + "]" * depth + "}")
        with pytest.raises(PathoError):
            loading.load_model(folder)
