"""The demo images: exact layouts, a planted cue with a known best possible AUC, planted faults, whole or absent."""

import itertools
import re
import shutil
import statistics
from dataclasses import replace

import cv2
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from patholib.base.errors import PathoError
from patholib.base.files import read_json, sha256
from patholib.data import demo, readers
from patholib.data.demo import drawing, plans, skin_images, tissue_images
from patholib.judge import ceilings, rivals
from patholib.lab import reference

pytestmark = pytest.mark.heavy

SMALL = {"groups": 8, "images_per_group": 4, "size": (112, 74)}
BREAKHIS = re.compile(
    r"BreaKHis_v1/histology_slides/breast/(benign|malignant)/SOB/([a-z_]+)/SOB_([BM])_([A-Z]+)_(14-\d+[A-Z]*)/(\d+)X/"
    r"SOB_\3_\4-\5-\6-(\d{3})\.png"
)


@pytest.fixture(scope="module")
def breakhis(tmp_path_factory):
    return demo.write(tmp_path_factory.mktemp("demo") / "breakhis", **SMALL)


@pytest.fixture(scope="module")
def isic(tmp_path_factory):
    return demo.write(tmp_path_factory.mktemp("demo") / "isic", "isic2019", groups=32, size=(120, 90))


def digests(folder):
    return {path.relative_to(folder).as_posix(): sha256(path) for path in folder.rglob("*") if path.is_file()}


def pixels(folder, path):
    return cv2.imread(str(folder / path))[..., ::-1]


def plan(layout, **settings):
    """The truth table of a set, without drawing it."""
    full = demo._settings(
        layout,
        *(settings.get(name) for name in ("groups", "images_per_group", "size")),
        settings.get("seed", 0),
        settings.get("best_auc", 0.97),
        1.0,
    )
    made = (plans.plan_breakhis if layout == "breakhis" else plans.plan_isic)(full)
    table = pd.DataFrame(made.rows)
    return table.assign(**{f"best_p_{name}": p for name, p in made.posteriors(table["latent"]).items()}), made.prior


@pytest.mark.parametrize("layout", ["breakhis", "isic2019"])
def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(tmp_path, layout):
    settings = {"groups": 8, "images_per_group": 1, "size": (96, 72)}
    first, second, other = (
        demo.write(tmp_path / name, layout, seed=seed, **settings) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert digests(first) == digests(second)
    images = [{sha256(folder / path) for path in demo.truth(folder)["path"]} for folder in (first, other)]
    assert not images[0] & images[1]


def test_breakhis_names_agree_with_their_folders(breakhis):
    for path, label in demo.truth(breakhis)[["path", "label"]].itertuples(index=False):
        found = BREAKHIS.fullmatch(path)
        assert found, path
        assert plans.SUBTYPES[found[4]][:2] == (found[1], found[2])
        assert found[1] == label
        assert found[3] == label[0].upper()
        assert found[6] == "40"


def test_isic_tables_have_the_columns_of_the_challenge_and_name_every_image(isic):
    labels = pd.read_csv(isic / "ISIC_2019_Training_GroundTruth.csv")
    metadata = pd.read_csv(isic / "ISIC_2019_Training_Metadata.csv", dtype=str, keep_default_na=False)
    assert labels.columns.tolist() == ["image", "MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK"]
    assert metadata.columns.tolist() == ["image", "age_approx", "anatom_site_general", "lesion_id", "sex"]
    assert (labels.drop(columns="image").sum(axis=1) == 1).all()
    assert labels["image"].str.fullmatch(r"ISIC_\d{7}").all()
    on_disk = sorted(path.stem for path in (isic / "ISIC_2019_Training_Input").iterdir())
    assert on_disk == labels["image"].tolist() == metadata["image"].tolist()
    table = demo.truth(isic)
    assert labels.set_index("image").idxmax(axis=1).tolist() == table["label"].tolist()
    assert (metadata["lesion_id"] == "").any()
    assert (metadata["lesion_id"].value_counts() > 1).sum() > 8


def test_the_default_isic_set_keeps_the_order_of_the_classes_and_enough_lesions_of_each():
    table, _ = plan("isic2019")
    lesions = table.groupby("label")["group"].nunique()
    assert lesions.min() >= 8
    assert lesions.idxmax() == "NV"
    real = pd.Series(plans.LESIONS).sort_values().index
    assert (np.diff(lesions[real]) >= 0).all()
    assert 450 <= len(table) <= 510


def test_the_truth_table_lists_every_image_once_in_order(breakhis, isic):
    for folder, suffix in ((breakhis, "png"), (isic, "jpg")):
        table = demo.truth(folder)
        images = {p.relative_to(folder).as_posix() for p in folder.rglob(f"*.{suffix}") if p.parent.name != plans.MASKS}
        assert table["path"].tolist() == sorted(images)
        assert read_json(folder / demo.MARKER)["images"] == len(table)
        best = table.filter(like="best_p_")
        assert np.allclose(best.sum(axis=1), 1)
        assert all((folder / mask).is_file() for mask in table["mask"])


def test_the_marker_says_that_nothing_here_is_a_result(breakhis):
    marker = read_json(breakhis / demo.MARKER)
    assert "no number obtained on them is a result" in marker["notice"]
    assert marker["best_auc"] == 0.98
    assert marker["version"] == demo.VERSION


def test_the_noise_has_no_seam_where_its_lattice_wraps():
    x, y = drawing.grid((160, 160))
    field = drawing.field(np.random.default_rng(0), x - 80, y - 80, 24.0)
    steps = np.abs(np.diff(field, axis=0)).max(1), np.abs(np.diff(field, axis=1)).max(0)
    assert max(step[78:82].max() for step in steps) < 1.5 * np.median(np.concatenate(steps))


def test_the_nest_lies_in_the_centre_square_at_many_places():
    centres = []
    for index in range(12):
        _, mask = tissue_images.tissue(np.random.default_rng(index), (176, 116), 0.0)
        rows, columns = np.nonzero(mask)
        assert columns.min() >= 30
        assert columns.max() < 146
        assert rows.min() >= 0
        assert rows.max() < 115  # the outline is closed inside the picture
        centres.append([columns.mean(), rows.mean()])
    assert (np.ptp(centres, axis=0) > 116 / 5).all()


def test_the_latent_changes_the_picture_under_the_mask_and_nowhere_else():
    (low, mask), (high, same) = (tissue_images.tissue(np.random.default_rng(5), (176, 116), z) for z in (-2.0, 2.0))
    assert (mask == same).all()
    differs = np.abs(low - high).max(2) > 0
    assert not (differs & (cv2.dilate(mask, np.ones((3, 3)), iterations=4) == 0)).any()
    assert differs[mask > 0].mean() > 0.5


def test_the_lesion_mask_covers_what_differs_from_the_same_skin_with_another_cue():
    for cue in skin_images.CUES:
        picture, mask = skin_images.skin(np.random.default_rng(1), np.random.default_rng(2), (150, 112), cue)
        inside = mask > 0
        assert 0.04 < inside.mean() < 0.5
        near = cv2.dilate(mask, np.ones((3, 3)), iterations=8) > 0
        skin = np.median(picture[~near], 0)
        gap = [np.abs(np.median(picture[region], 0) - skin).sum() for region in (inside, ~inside)]
        assert gap[0] > 20
        assert gap[0] > 2 * gap[1]


def test_the_texture_of_a_lesion_tells_its_class_and_its_colours_do_not():
    def textures(picture):
        grey = picture.mean(2, dtype=np.float32)
        blurred = [cv2.GaussianBlur(grey, (0, 0), 1.5**step) for step in range(6)]
        bands = np.array([fine - coarse for fine, coarse in itertools.pairwise(blurred)]) / grey.std()
        return np.concatenate([np.log((bands**2).mean((1, 2))), np.cbrt((bands**3).mean((1, 2)))])

    cues = np.repeat(list(skin_images.CUES), 24)
    pictures = [
        skin_images.skin(drawing.generator(1, i), drawing.generator(2, i), (128, 96), cue, 0.5)[0][:, 16:112]
        for i, cue in enumerate(cues)
    ]
    auc = {}
    for statistics_of in (rivals.colours, textures):
        head = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
        told = cross_val_predict(head, np.array([*map(statistics_of, pictures)]), cues, method="predict_proba")
        auc[statistics_of] = roc_auc_score(cues, told, multi_class="ovr")
    assert auc[rivals.colours] < 0.65
    assert auc[textures] > 0.9


def test_the_latent_has_the_auc_that_was_asked_for_and_its_posterior_is_calibrated():
    for best_auc in (0.8, 0.97):
        table, prior = plan("breakhis", groups=400, images_per_group=20, best_auc=best_auc)
        y = (table["label"] == "malignant").to_numpy()
        d = 2**0.5 * statistics.NormalDist().inv_cdf(best_auc)
        for name, mean in (("benign", -d / 2), ("malignant", d / 2)):
            z = table.loc[table["label"] == name, "latent"]
            assert abs(z.mean() - mean) < 4 / len(z) ** 0.5
            assert abs(z.std() - 1) < 4 / (2 * len(z)) ** 0.5
        assert abs(roc_auc_score(y, table["latent"]) - best_auc) < 0.02
        p = table["best_p_malignant"].to_numpy()
        assert abs(y.mean() - prior["malignant"]) < 1e-12
        for low in np.arange(0, 1, 0.2):
            here = (p >= low) & (p < low + 0.2)
            assert abs(y[here].mean() - p[here].mean()) < 4 * (0.25 / here.sum()) ** 0.5


def test_the_posterior_of_a_hand_worked_latent_is_exact():
    table, prior = plan("breakhis", groups=10, images_per_group=1)
    normal, z, share = statistics.NormalDist, table["latent"][0], prior["malignant"]
    d = plans.separation({"best_auc": 0.97})
    malignant, benign = share * normal(d / 2).pdf(z), (1 - share) * normal(-d / 2).pdf(z)
    assert table["best_p_malignant"][0] == pytest.approx(malignant / (malignant + benign))


def test_no_class_of_the_lesions_can_be_told_better_than_was_asked_for():
    table, _ = plan("isic2019", groups=6000, images_per_group=1, best_auc=0.9)
    for name in ("NV", "MEL", "BCC", "BKL"):
        y = table["label"] == name
        assert abs(roc_auc_score(y, table[f"best_p_{name}"]) - 0.9) < 0.025
        for p, here in table.groupby(table[f"best_p_{name}"].round(9)):
            assert abs((here["label"] == name).mean() - p) < 4 * (0.25 / len(here)) ** 0.5


def test_the_size_of_the_nuclei_tells_the_latent_and_the_amount_of_stain_does_not():
    z, fine, stained = np.linspace(-3.5, 3.5, 24), [], []
    for index, latent in enumerate(z):
        dye, mask = tissue_images.tissue(np.random.default_rng([7, index]), (350, 230), latent)
        blurred, inside = cv2.GaussianBlur(dye[..., 0], (0, 0), 1), cv2.erode(mask, np.ones((5, 5))) > 0
        fine.append(np.hypot(*np.gradient(blurred))[inside].mean() / blurred[inside].std())  # edges, against contrast
        stained.append(dye[..., 0][inside].mean())
    assert np.corrcoef(fine, z)[0, 1] >= 0.9
    assert abs(np.corrcoef(stained, z)[0, 1]) < 0.5


def test_patients_differ_in_stain_and_the_images_of_one_do_not(breakhis, tmp_path):
    def spread(folder):
        table = demo.truth(folder)
        colour = pd.DataFrame([np.median(pixels(folder, path), (0, 1)) for path in table["path"]])
        between = colour.groupby(table["group"]).mean().var().mean()
        return between / colour.groupby(table["group"]).var().mean().mean()

    same = demo.write(tmp_path / "same", patient_effect=0.0, **SMALL)
    assert spread(breakhis) > 3 * spread(same)
    one, two = (np.vstack(drawing.stain(0, case, 0.0)) for case in ("14-1", "14-2"))
    assert np.array_equal(one, two)


def test_a_second_call_reuses_what_is_there(breakhis):
    before = {path: path.stat().st_mtime_ns for path in breakhis.rglob("*")}
    demo.write(breakhis, **SMALL)
    assert before == {path: path.stat().st_mtime_ns for path in breakhis.rglob("*")}


def test_an_interrupted_write_leaves_nothing_and_an_incomplete_folder_is_written_again(tmp_path, monkeypatch):
    settings = {"groups": 8, "images_per_group": 1, "size": (96, 72)}

    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(demo, "write_json", interrupted)  # the marker, the very last file
        with pytest.raises(KeyboardInterrupt):
            demo.write(tmp_path / "x", **settings)
    assert list(tmp_path.iterdir()) == []

    folder = demo.write(tmp_path / "x", **settings)
    whole = digests(folder)
    image = folder / demo.truth(folder)["path"][3]
    for damage in (image.unlink, lambda: image.write_bytes(image.read_bytes()[:50])):
        damage()
        assert digests(demo.write(folder, **settings)) == whole


def test_other_settings_replace_demo_files_but_never_a_strangers(tmp_path):
    settings = {"groups": 8, "images_per_group": 1, "size": (96, 72)}
    folder = demo.write(tmp_path / "x", **settings)
    assert len(demo.truth(demo.write(folder, **settings | {"images_per_group": 2}))) == 16
    (folder / "thesis.txt").write_text("mine")
    for target in (folder, tmp_path):
        with pytest.raises(PathoError, match="folder_not_demo"):
            demo.write(target, **settings)
    assert (folder / "thesis.txt").read_text() == "mine"


def test_no_patient_is_in_two_classes_and_no_file_is_there_twice(breakhis, isic):
    for folder in (breakhis, isic):
        table = demo.truth(folder)
        assert table.groupby("group")["label"].nunique().max() == 1
        assert len({sha256(folder / path) for path in table["path"]}) == len(table)


@pytest.mark.parametrize(
    ("code", "layout", "settings"),
    [
        ("unknown_layout", "breakhiss", {}),
        ("bad_demo_setting", "breakhis", {"groups": 7}),
        ("bad_demo_setting", "breakhis", {"best_auc": 1.0}),
        ("bad_demo_setting", "breakhis", {"size": (230, 350)}),
    ],
)
def test_an_impossible_setting_is_refused_before_anything_is_written(tmp_path, code, layout, settings):
    with pytest.raises(PathoError) as refused:
        demo.write(tmp_path / "x", layout, **settings)
    assert refused.value.code == code
    assert not (tmp_path / "x").exists()


def test_the_demo_folder_can_be_moved(breakhis, tmp_path):
    moved = shutil.copytree(breakhis, tmp_path / "elsewhere")
    assert demo._complete(moved, read_json(moved / demo.MARKER)["settings"])


def test_a_model_is_measured_against_the_best_possible_on_demo_images_only(isic, capsys, monkeypatch):
    source = readers.read(isic)
    best = ceilings.best_possible(source, source.table)
    best = best.assign(group=best["lesion"])
    monkeypatch.setenv(reference.STRICT, "1")
    reference.check_against_best(source, best, tol=0.0)
    columns = [f"p_{c}" for c in source.classes]
    worse = best.assign(**{c: best[columns[::-1]].to_numpy()[:, i] for i, c in enumerate(columns)})
    with pytest.raises(PathoError) as refusal:
        reference.check_against_best(source, worse)
    assert refusal.value.code == "short_of_best"
    monkeypatch.delenv(reference.STRICT)
    reference.check_against_best(source, worse)  # a run of a user is never stopped
    assert capsys.readouterr().out.count("best possible on these images") == 3
    reference.check_against_best(replace(source, demo=False), worse)
    assert "not known" in capsys.readouterr().out
