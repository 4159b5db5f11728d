"""Reference implementations of pruning for diffusion models: score -> select -> cut.

>>> plan = reference.plan(model, granularity="head", amount=0.3)
>>> report = reference.apply(model, plan)
>>> reference.save_pruned(model, "folder")
"""

from importlib import import_module

_HOME = {
    "engine": ("apply", "plan", "prune", "prune_heads"),
    "calibration": ("Calibration",),
    "models": ("Units", "units"),
    "plans": ("Plan",),
    "report": ("Report",),
    "checkpoint": ("load_pruned", "save_pruned"),
    "adapters": ("slice_lora",),
    "pruning": ("apply_magnitude_pruning", "create_pruned_pipeline"),
    "semi_structured": ("permute_neurons",),
    "errors": ("NeedsCalibration", "NotPrunable"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> object:
    """Import on first use: torch and diffusers take seconds, and the tables are rendered without them."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'reference' has no attribute {name!r}")
    return getattr(import_module(f"reference.{_MODULE_OF[name]}"), name)
