"""The explorer of a trained model for notebooks: choose an image, see the prediction and its heatmap."""

from __future__ import annotations

import contextlib
import html
from collections.abc import Callable

import ipywidgets as widgets
import numpy as np
import traitlets

from patholib.data import manifest
from patholib.data.decoding import FORMATS
from patholib.lab import explored
from patholib.lab.explorer_state import State
from patholib.report.figures import style

EVERYTHING = {"target": "predicted class", "outcome": "(all)", "label": "(all classes)", "patient": "(all patients)"}
ROWS = 12  # most classes whose probabilities are all shown


class Face:
    """The widgets of an explorer, linked with its traits; each has the CSS class patho-<name>, and a label."""

    def __init__(self, explorer: State):
        self.explorer, self.still = explorer, False
        self.parts: dict[str, widgets.Widget] = {}
        columns = widgets.HBox([self._choosing(), self._looking()], layout=_layout(flex_flow="row wrap"))
        self.root = self._add("explorer", widgets.VBox, children=[self._add("header", widgets.HTML), columns])
        self._show_header()
        self._show_options()
        self._show_look()
        explorer.observe(lambda _: self._show_options(), "options")
        explorer.observe(lambda _: self._show_look(), "seen")
        explorer.observe(lambda _: self._show_history(), ["note", "message"])
        explorer.observe(lambda _: self._show_told(), ["error", "message"])

    # --- what it is made of

    def _choosing(self) -> widgets.Widget:
        """The left column: filters, the list of images, a file of your own."""
        chosen = self._add("image", widgets.Select, "image", rows=10)
        chosen.observe(lambda change: self._choose(change["new"]), "value")
        steps = [
            self._button("previous", "◀ previous", lambda: self.explorer.step(-1)),
            self._button("next", "next ▶", lambda: self.explorer.step(1)),
            self._add("place", widgets.HTML),
        ]
        # JupyterLab keeps the arrow keys up and down for its cells, also on a list; a slider takes left and right.
        number = self._add("number", widgets.IntSlider, "number", min=1, max=2, readout=False, continuous_update=False)
        number.observe(lambda change: self._go(change["new"]), "value")
        accepted = ",".join(sorted(set().union(*(endings for _, endings in FORMATS.values()))))
        upload = self._add("upload", widgets.FileUpload, accept=accepted, description="open your own image")
        upload.observe(lambda change: self._take(change["new"]), "value")
        path = self._add(
            "path", widgets.Text, "or its path", continuous_update=False, placeholder="for files above 10 MB"
        )
        path.observe(lambda change: self._open(change["new"]), "value")
        texts = {"outcome": "outcome", "label": "true class", "patient": "patient", "order": "order"}
        filters = [self._dropdown(trait, text) for trait, text in texts.items()]
        for widget in filters:
            widget.layout.flex = "1 1 200px"
        parts = [
            widgets.HBox(filters, layout=_layout(flex_flow="row wrap")),
            *(chosen, number, widgets.HBox(steps, layout=_layout(align_items="center")), upload, path),
        ]
        return widgets.VBox(parts, layout=_layout(flex="1 1 300px"))

    def _looking(self) -> widgets.Widget:
        """The right column: settings of the heatmap, prediction and heatmap, notes."""
        how = {"min": 0, "max": 1, "step": 0.05, "continuous_update": False, "readout_format": ".2f"}
        alpha = self._add("alpha", widgets.FloatSlider, "opacity", **how)
        traitlets.link((self.explorer, "alpha"), (alpha, "value"))
        texts = {"target": "heatmap for", "block": "after block", "method": "method", "colours": "colours"}
        asked = [*(self._dropdown(trait, text) for trait, text in texts.items()), alpha]
        for widget in asked:
            widget.layout.flex, widget.style.description_width = "1 1 220px", "84px"
        layout = _layout(width="calc(100% - 4px)", max_width="1200px", height="auto")
        picture = self._add("picture", widgets.Image, format="png", layout=layout)
        traitlets.link((self.explorer, "png"), (picture, "value"))
        note = self._add("note", widgets.Textarea, "note", continuous_update=False, rows=2)
        traitlets.link((self.explorer, "note"), (note, "value"))
        save = widgets.HBox(
            [self._button("save", "save notes", self.explorer.save), self._add("message", widgets.HTML)]
        )
        notes = widgets.VBox([note, save, self._add("history", widgets.HTML)], layout=_layout(flex="1 1 280px"))
        probs = self._add("probs", widgets.HTML, layout=_layout(flex="1 1 240px"))
        parts = [
            widgets.HBox(asked, layout=_layout(flex_flow="row wrap")),
            *(self._add(name, widgets.HTML) for name in ("error", "headline", "verdict")),
            self._button("check", "check such heatmaps", self.explorer.check),
            picture,
            widgets.HBox([probs, notes], layout=_layout(flex_flow="row wrap")),
        ]
        return widgets.VBox(parts, layout=_layout(flex="3 1 520px"))

    def _add(self, name: str, kind: Callable, text: str = "", **values) -> widgets.Widget:
        """A widget with a handle, as wide as its column; text: what stands before it."""
        if text:
            values |= {"description": text, "style": {"description_width": "76px"}}
        widget = self.parts[name] = kind(**{"layout": _layout()} | values)
        widget.add_class(f"patho-{name}")
        return widget

    def _tell(self, name: str, text: str) -> None:
        """Shows HTML, its lines as close as those of a page."""
        self.parts[name].value = f'<div style="line-height:1.45;overflow-wrap:break-word">{text}</div>' if text else ""

    def _button(self, name: str, text: str, press: Callable) -> widgets.Widget:
        button = self._add(name, widgets.Button, description=text, layout=_layout(flex="0 0 auto"))
        button.on_click(lambda _: self.explorer.attempt(press))
        return button

    def _dropdown(self, trait: str, text: str) -> widgets.Widget:
        dropdown = self._add(trait, widgets.Dropdown, text, options=self._choices(trait))
        traitlets.link((self.explorer, trait), (dropdown, "value"))
        return dropdown

    def _choices(self, trait: str) -> list[tuple[str, str]]:
        values = self.explorer.choices(trait)
        return [
            (style.method_name(value) if trait == "method" else value or EVERYTHING[trait], value) for value in values
        ]

    # --- what a person does

    def _choose(self, path: str | None) -> None:
        if path is not None and not self.still:
            self.explorer.attempt(setattr, self.explorer, "image", path)

    def _go(self, number: int) -> None:
        if not self.still:
            self._choose(self.explorer.paths[number - 1])

    def _take(self, value) -> None:
        for name, content in uploaded(value):
            self.explorer.attempt(self.explorer.add, content, name)
        if value:
            upload = self.parts["upload"]
            upload.set_trait("value", type(upload.value)())  # emptied, so that the same file is news again

    def _open(self, path: str) -> None:
        if path.strip():
            self.explorer.attempt(self.explorer.add, path.strip())
            self.parts["path"].value = ""

    # --- what is shown

    def _show_header(self) -> None:
        explorer = self.explorer
        demo = f'<b style="color:{style.WARNING}">{manifest.DEMO_NOTE}.</b> ' if explorer.demo else ""
        self._tell(
            "header",
            (
                f"<b>{html.escape(explorer.run.name)}</b> - {html.escape(explorer.predictor.recipe.arch)}, "
                f"{len(explorer.classes)} classes. {demo}For research use only, not for any decision about a patient."
            ),
        )

    @contextlib.contextmanager
    def _unasked(self):
        """Inside, a change of a widget is not a person's choice."""
        before, self.still = self.still, True
        try:
            yield
        finally:
            self.still = before

    def _show_options(self) -> None:
        explorer, chosen = self.explorer, self.parts["image"]
        with self._unasked():  # a list chooses its first entry by itself
            chosen.options = explorer.options
            chosen.value = explorer.image if explorer.image in explorer.paths else None
        self._show_place()

    def _show_place(self) -> None:
        paths, number = self.explorer.paths, self.parts["number"]
        at = paths.index(self.explorer.image) if self.explorer.image in paths else None
        self._tell("place", f"{0 if at is None else at + 1} of {len(paths)}")
        self.parts["previous"].disabled = not at
        self.parts["next"].disabled = at is None or at + 1 == len(paths)
        with self._unasked():
            number.max, number.disabled = max(2, len(paths)), len(paths) < 2  # a slider needs two places
            number.value = 1 if at is None else at + 1

    def _show_look(self) -> None:
        look = self.explorer.seen
        if look is None:
            self._tell("headline", "There are no images yet: open your own.")
            return
        with self._unasked():
            self.parts["image"].value = look.path if look.path in self.explorer.paths else None
        self._show_place()
        odd = "".join(f"<br>{html.escape(reason)}" for reason in self.explorer.warnings)
        blank = "" if look.heat.any() else f"<br>Blank map: no evidence for {html.escape(look.target)} in this image."
        who = f" - patient {html.escape(look.row['patient'])}" if look.row["patient"] else ""
        self._tell("headline", f"<b>{html.escape(look.caption)}</b>{who}{blank}{odd}")
        self._tell("verdict", f"<b>Heatmap checks:</b> {html.escape(look.verdict)}")
        self._tell("probs", probability_bars(self.explorer))
        self._show_history()

    def _show_history(self) -> None:
        rows = self.explorer.history.tail(6).iloc[::-1]
        cells = "".join(
            f"<tr><td>{html.escape(explored.short(row.image))}</td><td>{html.escape(row.predicted)}</td>"
            f"<td>{html.escape(row.note[:60])}</td></tr>"
            for row in rows.itertuples()
        )
        self._tell(
            "history",
            "<table style='font-size:.9em' aria-label='viewed last'><tr style='text-align:left'>"
            f"<th>viewed last</th><th>predicted</th><th>note</th></tr>{cells}</table>",
        )

    def _show_told(self) -> None:
        error, message = html.escape(self.explorer.error), html.escape(self.explorer.message)
        self._tell("error", f'<b role="alert" style="color:{style.WARNING}">{error}</b>' if error else "")
        self._tell("message", f'<span role="status">{message}</span>' if message else "")


class Explorer(State):
    """A model and its images; in Jupyter it shows itself as widgets.

    See `State` for what it is made from and what can be set.
    """

    _face: Face | None = None

    def __repr__(self) -> str:
        note = f" - {self.figure_note}" if self.demo else ""
        return f"Explorer of {self.run.name}: {len(self.table)} images{note} (run this cell to see its widgets)"

    def _repr_mimebundle_(self, **_) -> dict:
        """The widgets, in the form that ipywidgets 7 and 8 both understand, with a text where there are none."""
        self._face = self._face or Face(self)
        return {
            "text/plain": repr(self),
            "application/vnd.jupyter.widget-view+json": {
                "version_major": 2,
                "version_minor": 0,
                "model_id": self._face.root.model_id,
            },
        }


def probability_bars(explorer: State) -> str:
    """The probabilities of the image viewed as an HTML table of bars, the threshold as a line across its bar.

    Of more than 12 classes the 12 most probable, with the true and the predicted class.
    """
    row, (marked, threshold) = explorer.seen.row, explorer.marked or (None, None)
    probs = {name: float(row[f"p_{name}"]) for name in explorer.classes}
    likely = {*sorted(probs, key=lambda name: -probs[name])[:ROWS], row["predicted"], row["label"]}
    held = explorer.predictor.prediction_sets(np.array([[*probs.values()]]), explorer.decision)[0] or ()
    bars = "".join(
        _bar(name, p, row, threshold if name == marked else None, name in held)
        for name, p in probs.items()
        if name in likely
    )
    told = f"; the line is the threshold for {html.escape(marked)}: {threshold:.3g}" if marked is not None else ""
    spread = explorer.spread
    told += "" if spread is None else f"; spread over the {explorer.predictor.members} networks: {spread:.2f}"
    told += "".join(f"<br>{html.escape(text)}" for text in explorer.predictor.promises(explorer.decision))
    few = f" ({len(likely & probs.keys())} of {len(probs)} classes)" if len(probs) > ROWS else ""
    return (
        f"<table style='width:100%' aria-label='probabilities'>{bars}</table>"
        f"<small>predicted probability of each class{few}{told}</small>"
    )


def _bar(name: str, p: float, row, threshold: float | None, held: bool) -> str:
    """One class: its name, a bar, the probability, and whether it is the true or the predicted class, or in the set."""
    words = [word for word, key in (("predicted", "predicted"), ("true", "label")) if row[key] == name]
    said = ", ".join([*words, "in the set"] if held else words)
    line = (
        ""
        if threshold is None
        else (
            f"<div style='position:absolute;left:{threshold:.1%};top:-3px;bottom:-3px;"
            "border-left:2px solid currentColor'></div>"
        )
    )
    return (
        f"<tr><th scope='row' style='text-align:left;padding-right:8px'>{html.escape(name)}</th>"
        f"<td style='width:100%'><div style='position:relative;background:rgba(128,128,128,.25)'>"
        f"<div style='width:{p:.1%};height:14px;background:{style.BLUE}'></div>{line}</div></td>"
        f"<td style='text-align:right;padding:0 8px'>{p:.2f}</td><td style='white-space:nowrap'>{said}</td></tr>"
    )


def _layout(**values) -> widgets.Layout:
    """As wide as its column, and never wider."""
    return widgets.Layout(**{"width": "auto", "min_width": "0"} | values)


def uploaded(value) -> list[tuple[str, bytes]]:
    """Names and contents of a FileUpload: a dict by name in ipywidgets 7, a tuple of dicts in 8."""
    if isinstance(value, dict):
        return [(name, bytes(entry["content"])) for name, entry in value.items()]
    return [(entry["name"], bytes(entry["content"])) for entry in value]
