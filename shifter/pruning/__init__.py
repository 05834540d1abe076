"""Phase 2: exact reduction of a sparse network, its proof, its profile and the selection.

The paper's modules: 1 :mod:`~shifter.pruning.fuse`, 2 :mod:`~shifter.pruning.analyse`,
3 :mod:`~shifter.pruning.plan`, 4 :mod:`~shifter.pruning.rebuild`, 5 :mod:`~shifter.pruning.profile`,
6 :mod:`~shifter.pruning.select`. Their orchestration over a run is in ``jobs/reduction.py``.
"""

from shifter.pruning.exactness import check_exactness
from shifter.pruning.plan import PrunePlan, plan_round
from shifter.pruning.rebuild import rebuild_graph, rebuild_layer
from shifter.pruning.select import select

__all__ = ["PrunePlan", "check_exactness", "plan_round", "rebuild_graph", "rebuild_layer", "select"]
