"""Phase 2: exact reduction of a sparse network, its proof, its profile and the selection.

The paper's modules: 1 ``fuse.py``, 2 ``analyse.py``, 3 ``plan.py``, 4 ``rebuild.py``, 5 ``profile.py``,
6 ``select.py``; ``graph.py`` reads the network, ``spaces.py`` finds the channels that go together,
``exactness.py`` proves the result. A run's rounds are put through all of it by ``jobs/reduction.py``.
"""
