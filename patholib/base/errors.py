"""Errors: every refusal names its subject, the reason and the remedy, and has a stable code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PathoError(Exception):
    """A refusal a person can act on; the code decides which of the six classes below it is.

    code: stable, lower case with underscores, for programs (`"label_conflict"`).
    subject: the file (relative path), the CSV row or column, or the parameter that is meant; escaped by `shown`.
    reason: what is wrong with it. remedy: what to do about it.
    """

    report: dict  # of the data check, where that is what refuses

    def __new__(cls, code: str, *rest: str, **named: str) -> PathoError:
        return super().__new__(CLASS_OF.get(code, cls) if cls is PathoError else cls)

    def __init__(self, code: str, subject: str, reason: str, remedy: str):
        self.code, self.subject, self.reason, self.remedy = code, shown(subject), reason, remedy
        super().__init__(code, self.subject, reason, remedy)  # all four, so that the error survives pickling

    def __str__(self) -> str:
        return f"[{self.code}] {self.subject}: {self.reason}. {self.remedy}"

    def _render_traceback_(self) -> list[str]:
        """Jupyter shows these lines instead of a traceback."""
        return [f"{type(self).__name__} {self}"]


class DataError(PathoError):
    """Images, tables, labels, groups or splits cannot be used."""


class ParameterError(PathoError):
    """A parameter, a field of a recipe or an argument has a wrong name or value."""


class TrainingError(PathoError):
    """A training or a later step cannot be started, resumed or finished."""


class ModelError(PathoError):
    """Weights, a checkpoint or an exported model cannot be used."""


class ResourceError(PathoError):
    """Disk, memory, network, a lock or a port is not available."""


class SetupError(PathoError):
    """A package, a GPU or an engine is missing."""


CODES: dict[type[PathoError], str] = {
    DataError: """
        bad_archive bad_id bad_images bad_json bad_label bad_manifest bad_order bad_probabilities blank broken_link
        changed_file class_mismatch corrupt csv_format data_differ data_root download_changed download_damaged duplicate
        empty empty_class external_leak folder_not_demo io_error label_conflict label_mismatch
        link_outside_root listed_twice missing_column missing_file multi_frame name_collision name_pattern
        no_groups no_images no_masks no_predictions no_split no_truth none_left not_an_image not_paired
        nothing_to_check one_class other_images rows_without_files single_class split_changed
        split_infeasible split_leakage split_mismatch too_many_bad too_many_bytes too_many_pixels too_small
        two_spellings unknown_class unknown_column unknown_extension unknown_group unknown_layout unknown_split
        unknown_value unreadable unsafe_archive unsupported_format unsupported_mode""",
    ParameterError: """
        bad_calibration bad_classes bad_counts bad_demo_setting bad_fractions bad_freeze bad_heat bad_network
        bad_notebook bad_novelty bad_parameter bad_recipe bad_runs bad_scores bad_seed bad_threshold missing_run
        no_parameters output_in_data parameters_cell undefined_metric unknown_arch unknown_block unknown_field
        unknown_method unknown_notebook unknown_parameter unknown_recipe unknown_run unknown_source""",
    TrainingError: """
        bad_decision bad_run cluster_failed empty_history no_reference nonfinite_loss not_judged not_locked
        nothing_to_resume nothing_trained number_changed other_sweep process_lost resume_changed short_of_best test_seen
        time_is_up unfinished_run val_changed""",
    ModelError: """
        checkpoint_damaged checkpoint_refused checkpoint_version manifest_changed model_format model_output no_answer
        nonfinite_weights not_plain not_safetensors onnx_damaged onnx_differs other_model pin_mismatch weights_damaged
        weights_mismatch weights_missing weights_unreadable wrong_weights""",
    ResourceError: """
        decoder_stopped download_failed download_locked download_refused folder_exists folder_locked
        licence_not_accepted loader_timeout no_space not_shared out_of_memory output_exists output_locked
        output_unwritable port_taken run_locked unsafe_address""",
    SetupError: "missing_module no_cluster no_engine no_gpu not_installed not_started",
}
CLASS_OF = {code: kind for kind, codes in CODES.items() for code in codes.split()}


def shown(text) -> str:
    """Any text on one line, safe to print: a newline or a terminal code in it is shown, not obeyed."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


# Our names, and what other programs and the published descriptions call the same thing, as far as it looks different.
MEANT = {
    "arch": "architecture backbone model model_name network",
    "augmentation": "transform transforms",
    "balance": "class_weight class_weights sampler use_sampler",
    "clip_norm": "gradient_clip gradient_clipping grad_clip max_grad_norm max_norm",
    "data": "data_dir data_path dataset root",
    "device": "cuda gpu",
    "eta_min": "min_lr",
    "test": "test_size test_split",
    "val": "fractions val_size val_split validation_split",
    "group": "group_by groups patient_column",
    "hold_out": "holdout",
    "loss": "criterion",
    "lr": "learning_rate",
    "monitor": "metric metrics",
    "only": "filter subset where",
    "output": "out_dir output_dir save_dir",
    "patience": "early_stopping early_stopping_patience",
    "perspective": "distortion_scale",
    "precision": "amp fp16 half mixed_precision use_amp",
    "processes": "gpus n_gpus nproc nproc_per_node num_gpus num_processes world_size",
    "resume": "checkpoint resume_from",
    "schedule": "lr_schedule lr_scheduler scheduler",
    "seed": "random_state",
    "sgdr": "cosine cosineannealinglr cosineannealingwarmrestarts",
    "shift": "translate",
    "stages": "freeze freeze_layers frozen_blocks unfreezing_schedule",
    "tta_views": "n_tta num_tta",
    "weight_decay": "l2 wd",
    "weights": "checkpoint_path pretrained pretrained_weights",
    "workers": "n_workers num_workers",
}


def nearest(name: str, known: Iterable[str]) -> str:
    """Ends a message about an unknown name: the closest known one, or the whole list."""
    plain, known = str(name).casefold(), {str(k).casefold(): str(k) for k in known}
    close = [meant] if (meant := _meant(name)) in known else difflib.get_close_matches(plain, known, n=1, cutoff=0.5)
    return f"did you mean {known[close[0]]!r}?" if close else f"known: {', '.join(known.values())}"


def nearest_setting(name: str, known: Iterable[str]) -> str:
    """As `nearest`, for a field or parameter: what is meant may be known, but set in another place."""
    meant, known = _meant(name), list(known)
    if meant is None or meant in known:
        return nearest(name, known)
    return f"here that is {meant!r}, which is set elsewhere; known: {', '.join(known)}"


def _meant(name: str) -> str | None:
    return next((ours for ours, theirs in MEANT.items() if str(name).casefold() in theirs.split()), None)
