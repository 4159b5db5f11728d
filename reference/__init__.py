"""Reference implementations of pruning for diffusion models: score -> select -> cut.

>>> plan = reference.plan(model, granularity="head", amount=0.3)
>>> report = reference.apply(model, plan)
>>> reference.save_pruned(model, "folder")
"""

from reference.checkpoint import load_pruned, save_pruned
from reference.engine import Units, apply, plan, prune, prune_heads, units
from reference.errors import NeedsCalibration, NotPrunable
from reference.plans import Plan
from reference.pruning import apply_magnitude_pruning, create_pruned_pipeline
from reference.report import Report

__all__ = [
    "NeedsCalibration",
    "NotPrunable",
    "Plan",
    "Report",
    "Units",
    "apply",
    "apply_magnitude_pruning",
    "create_pruned_pipeline",
    "load_pruned",
    "plan",
    "prune",
    "prune_heads",
    "save_pruned",
    "units",
]
