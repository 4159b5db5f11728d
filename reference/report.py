"""What pruning did, per layer and for the whole model: the rate of the targeted units is not the rate of the model."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from torch import nn

from reference.anatomy.skipping import masked_blocks
from reference.low_rank import larger_than_dense
from reference.plans import Plan
from reference.threshold import count_nonzero


@dataclass
class Layer:
    """One group: units and how many are left."""

    name: str
    units: int
    kept: int


@dataclass
class Report:
    """`nonzero` counts weights that are not 0 and in no masked block; `parameters_after` what a dense file stores."""

    granularity: str
    mode: str
    layers: list[Layer]
    parameters_before: int
    parameters_after: int
    nonzero: int
    skipped: dict[str, str]
    approximate: dict[str, str]
    larger: dict[str, str]  # low-rank groups that take more parameters than the dense layers did
    plan: Plan = field(repr=False)

    @property
    def asked(self) -> float | Mapping[str, float] | None:
        """The rate, or rates, that the plan was asked for; None for patterns, ranks and plans by hand."""
        return self.plan.request.get("amount")

    @property
    def unit_rate(self) -> float:
        """Share of the targeted units that is gone."""
        total = sum(layer.units for layer in self.layers)
        return 1 - sum(layer.kept for layer in self.layers) / total if total else 0.0

    @property
    def model_rate(self) -> float:
        """Share of the whole model's parameters that is gone from its shapes; 0 for masks."""
        return 1 - self.parameters_after / self.parameters_before

    def to_dict(self) -> dict:
        """Everything but the plan, as JSON types."""
        facts = {name: value for name, value in vars(self).items() if name not in ("plan", "layers")}
        return facts | {
            "layers": [asdict(layer) for layer in self.layers],
            "asked": dict(self.asked) if isinstance(self.asked, Mapping) else self.asked,
            "unit_rate": self.unit_rate,
            "model_rate": self.model_rate,
        }

    def __str__(self) -> str:
        before, after = self.parameters_before, self.parameters_after
        units = sum(layer.units for layer in self.layers)
        rounded = isinstance(self.asked, float) and abs(self.asked - self.unit_rate) >= 0.0005
        return (
            f"{self.granularity} ({self.mode}): {self.unit_rate:.1%} of {units:,} units in {len(self.layers)} layers"
            + (f" ({self.asked:.1%} asked)" if rounded else "")
            + (f", {len(self.approximate)} of them cut approximately" if self.approximate else "")
            + f"; parameters {before:,} -> {after:,} ({self.model_rate:.1%} of the whole model "
            f"removed), of which {after - self.nonzero:,} are zero or masked; {len(self.skipped)} layers skipped"
            + "".join(f"; {layer}: {numbers}" for layer, numbers in self.larger.items())
        )


def make_report(root: nn.Module, plan: Plan, mode: str, before: Mapping[str, int]) -> Report:
    """Count what is there now. `before`: parameter name -> number of weights before pruning."""
    layers = [Layer(name, math.prod(plan.shapes[name]), plan.kept(name)) for name in plan.keep]
    parameters = dict(root.named_parameters())
    idle = {p for block in masked_blocks(root) for p in root.get_submodule(block).parameters()}
    return Report(
        granularity=plan.granularity,
        mode=mode,
        layers=layers,
        parameters_before=sum(before.values()),
        parameters_after=sum(p.numel() for p in parameters.values()),
        nonzero=sum(count_nonzero(p) for p in parameters.values() if p not in idle),
        skipped=dict(plan.skipped),
        approximate=dict(plan.approximate),
        larger=larger_than_dense(root, before) if plan.granularity == "rank" else {},
        plan=plan,
    )
