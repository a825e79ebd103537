"""The reporting checklists CLAIM 2024 and TRIPOD+AI, with where a run folder answers each item and what is open.

Tejani et al. 2024 (44 items), Collins et al. 2024 (27 items with their letters); in our own words.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

from markupsafe import Markup

from patholib.report.records import Record

BESIDE = ("model_card.md", "data_card.md")  # are written together with the checklist


class Item(NamedTuple):
    """One item of a checklist: its number, what it asks in our words, and where a run answers it.

    where: Markdown; every file in backticks has to be there, or the item is open. left: what the authors have to add.
    """

    number: str
    asks: str
    where: str = ""
    left: str = ""


CLAIM = (
    Item("1", "Title or abstract names the kind of AI", left="title and abstract"),
    Item("2", "Abstract: design, methods, results, conclusion", left="the abstract"),
    Item("3", "Background, intended use and role of the method", "`model_card.md`, Intended use", "the background"),
    Item("4", "Aims and hypotheses", left="aims and hypotheses"),
    Item("5", "Prospective or retrospective", left="the design"),
    Item("6", "Goal of the study", left="the goal"),
    Item("7", "Where the data come from", "`data_card.md`, Motivation and Collection", "dates and places"),
    Item("8", "What was included and excluded", "`data_card.md`, Checking; `excluded.csv`", "clinical criteria"),
    Item("9", "Preprocessing", "`data_card.md`, Checking and preparation; `run.json`"),
    Item("10", "Subsets of the data that were used", "`split.csv`", "why these"),
    Item("11", "De-identification", left="how it was done"),
    Item("12", "Missing data", "`data_card.md`, Checking (rows without files)", "other missing data"),
    Item("13", "How the images were taken", left="devices and settings"),
    Item("14", "What the reference standard is", left="how the diagnosis was made"),
    Item("15", "Why that reference standard", left="the reason"),
    Item("16", "Who annotated, with what training", left="who and how"),
    Item("17", "How the test set was annotated", left="who and how"),
    Item("18", "Agreement between and within annotators", left="the agreement"),
    Item("19", "How data were assigned to the partitions", "`data_card.md`, Split; `split.csv`"),
    Item("20", "Level at which the partitions are disjoint", "`data_card.md`, Split"),
    Item("21", "Intended size of the test set", left="the size and its reason"),
    Item("22", "The model in full", "`model_card.md`, Model; `run.json`; `model.json`"),
    Item("23", "Software and its versions", "`report.md`, Versions, hashes and settings; `run.json`"),
    Item("24", "Initial weights", "`model_card.md`, Model"),
    Item("25", "Training in full", "`model_card.md`, Training; `run.json`; `history.csv`"),
    Item("26", "How the final model was chosen", "`model_card.md`, Training (epoch used)"),
    Item("27", "Ensembles", "`predictions_test_tta.csv` (averaged views of one model; no ensemble of models)"),
    Item("28", "Measures of performance", "`metrics.json`; `report.md`, Results", "why these measures"),
    Item("29", "Uncertainty and significance", "`metrics.json` (95 % jackknife intervals over groups)"),
    Item(
        "30",
        "Robustness and sensitivity analysis",
        "`model_card.md`, Subgroups; `predictions_baseline.csv`",
        "changed images, other seeds",
    ),
    Item("31", "Methods of explanation, and their validation", "`heatmaps/`; `trust.json`"),
    Item("32", "Evaluation on internal data", "`predictions_test.csv`; `report.md`, Results"),
    Item("33", "Testing on external data", "`external/`, and External validation in the report"),
    Item("34", "Registration of a clinical trial", left="the number, or that there is none"),
    Item("35", "Numbers included and excluded", "`data_card.md`, Composition; `excluded.csv`", "the flow diagram"),
    Item("36", "Characteristics in each partition", "`data_card.md`, Composition", "demographics that the table lacks"),
    Item("37", "Performance with uncertainty, on all partitions", "`report.md`, Results; `metrics.json`"),
    Item(
        "38",
        "Diagnostic performance and its precision",
        "`model_card.md`, Numbers; `metrics.json`",
        "comparison with readers",
    ),
    Item("39", "Failure analysis", "`heatmaps/`; `report.md`, Results (confusion)", "what they show"),
    Item("40", "Limitations", "`model_card.md`, Limits", "those of the study"),
    Item("41", "Implications for practice", left="the implications"),
    Item("42", "Where the protocol is", left="the protocol"),
    Item(
        "43", "Availability of software, model and data", "`model_card.md`, Model and Data", "where they are available"
    ),
    Item("44", "Funding and the role of funders", left="funding"),
)

TRIPOD = (
    Item("1", "Title: a prediction model, whom it is for, what it predicts", left="the title"),
    Item("2", "Abstract", left="the abstract (its own checklist)"),
    Item("3a", "Health context and rationale, other models", left="the context"),
    Item("3b", "Target population, purpose in care, users", "`model_card.md`, Intended use", "the care pathway"),
    Item("3c", "Known health inequalities", left="the inequalities"),
    Item("4", "Objectives: development, evaluation or both", "`report.md` (both, in one run)", "the objectives"),
    Item("5a", "Sources of the data, and whether they represent", "`data_card.md`, Motivation", "representativeness"),
    Item("5b", "Dates of the data", left="the dates"),
    Item("6a", "Setting, number and place of centres", left="the setting"),
    Item("6b", "Eligibility", "`excluded.csv`", "clinical criteria"),
    Item("6c", "Treatments", left="treatments, or that they do not matter"),
    Item("7", "Preparation and quality checks of the data", "`data_card.md`, Checking; `data_report.json`"),
    Item("8a", "The outcome, and how it was assessed", left="how the diagnosis was made"),
    Item("8b", "Who assessed the outcome", left="their qualification"),
    Item("8c", "Blinding of that assessment", left="the blinding"),
    Item("9a", "Choice of predictors", "`model_card.md`, Model (only the pixels)"),
    Item("9b", "Definition of predictors", "`data_card.md`, Checking and preparation", "how the images were taken"),
    Item("9c", "Who assessed predictors", "`model_card.md`, Model (nobody: pixels)"),
    Item("10", "Study size", "`data_card.md`, Composition", "why that size"),
    Item("11", "Missing data", "`data_card.md`, Checking", "other missing data"),
    Item("12a", "How data were used and partitioned", "`data_card.md`, Split; `split.csv`"),
    Item("12b", "How predictors were handled", "`run.json` (image size, fit, augmentation)"),
    Item(
        "12c",
        "Model, building steps, tuning, internal validation",
        "`model_card.md`, Training; `run.json`",
        "what was tried before",
    ),
    Item("12d", "Heterogeneity across clusters", "`model_card.md`, Subgroups", "centres"),
    Item("12e", "Measures and plots", "`metrics.json`; `figures/`", "why these"),
    Item("12f", "Updating of the model after evaluation", "`decision.json` (fitted before the test; nothing after)"),
    Item("12g", "How predictions were calculated", "`predictions_test.csv`; `model.json`"),
    Item("13", "Class imbalance, and recalibration after", "`model_card.md`, Training; `decision.json`"),
    Item("14", "Fairness", "`model_card.md`, Subgroups", "what was done about it"),
    Item("15", "Output of the model, threshold and its reason", "`decision.json`; `model_card.md`, Decision"),
    Item("16", "Differences between training and evaluation data", "`data_card.md`, Composition"),
    Item("17", "Ethics approval and consent", left="approval and consent"),
    Item("18a", "Funding", left="funding"),
    Item("18b", "Conflicts of interest", left="conflicts"),
    Item("18c", "Protocol", left="the protocol"),
    Item("18d", "Registration", left="registration"),
    Item("18e", "Data sharing", "`data_card.md`, Uses and distribution", "where they are available"),
    Item("18f", "Code sharing", "`run.json` (version and commit)", "where it is available"),
    Item("19", "Patients and the public involved", left="the involvement, or that there was none"),
    Item("20a", "Flow of participants", "`data_card.md`, Composition and Checking", "the diagram"),
    Item("20b", "Characteristics", "`data_card.md`, Composition", "demographics that the table lacks"),
    Item("20c", "Training and evaluation data compared", "`data_card.md`, Composition"),
    Item("21", "Participants and outcomes in each analysis", "`data_card.md`, Composition"),
    Item("22", "The full model, for others to use", "`model.safetensors`; `model.json`", "access and restrictions"),
    Item("23a", "Performance with intervals, also in subgroups", "`model_card.md`, Numbers and Subgroups"),
    Item("23b", "Heterogeneity of performance", "`model_card.md`, Subgroups", "centres"),
    Item("24", "Results of updating", "`decision.json` (nothing was updated after the test)"),
    Item("25", "Interpretation, with fairness", left="the interpretation"),
    Item("26", "Limitations", "`model_card.md`, Limits", "those of the study"),
    Item("27a", "Poor or missing input in use", "`data_report.json` (what the check refuses)", "what to do in use"),
    Item("27b", "What users must do and know", "`model_card.md`, Intended use", "the users"),
    Item("27c", "Next steps", left="next steps"),
)


def facts(run: Record) -> dict:
    """Both checklists for the template: each item with where the run folder answers it and what the authors write."""
    lists = []
    for title, source, items in (
        ("CLAIM 2024", "Tejani et al. 2024", CLAIM),
        ("TRIPOD+AI", "Collins et al. 2024", TRIPOD),
    ):
        rows = [row(run, item) for item in items]
        states = Counter(state for _, _, state, _ in rows)
        lists.append(
            {
                "title": title,
                "source": source,
                "rows": rows,
                "states": {name: states[name] for name in ("filled", "in part", "open")},
            }
        )
    return {"lists": lists}


def row(run: Record, item: Item) -> tuple[str, str, str, Markup]:
    """The item with its state (filled, in part, or open) and where it is answered, as Markdown."""
    named = re.findall(r"`([^`]+)`", item.where)
    absent = [name for name in named if name not in BESIDE and not run.has(name)]
    parts = [
        item.where,
        f"missing: {', '.join(f'`{name}`' for name in absent)}" if absent else "",
        f"**to be written by the authors**: {item.left}" if item.left else "",
    ]
    there = len(named) > len(absent)
    state = "open" if not there else "in part" if item.left or absent else "filled"
    return item.number, item.asks, state, Markup("; ".join(filter(None, parts)))
