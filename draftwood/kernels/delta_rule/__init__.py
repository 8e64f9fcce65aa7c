"""The gated delta rule: per node in a decode pass, per granule in prefill."""

from __future__ import annotations

from draftwood.kernels.delta_rule.reference import DeltaShape, advance, granules, nodes

__all__ = ["DeltaShape", "advance", "granules", "nodes"]
