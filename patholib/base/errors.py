"""The one error type: every refusal names its subject, the reason and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PathoError(Exception):
    """A refusal a person can act on.

    code: stable, lower case with underscores, for programs (`"label_conflict"`).
    subject: the file (relative path), the CSV row or column, or the parameter that is meant; escaped by `shown`.
    reason: what is wrong with it. remedy: what to do about it.
    """

    def __init__(self, code: str, subject: str, reason: str, remedy: str):
        self.code, self.subject, self.reason, self.remedy = code, shown(subject), reason, remedy
        super().__init__(code, self.subject, reason, remedy)  # all four, so that the error survives pickling

    def __str__(self) -> str:
        return f"[{self.code}] {self.subject}: {self.reason}. {self.remedy}"

    def _render_traceback_(self) -> list[str]:
        """Jupyter shows these lines instead of a traceback."""
        return [f"PathoError {self}"]


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
    "fractions": "split test_size val_size val_split",
    "loss": "criterion",
    "lr": "learning_rate",
    "monitor": "metric metrics",
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
