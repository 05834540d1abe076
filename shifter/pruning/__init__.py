"""Phase 2: exact reduction of a sparse network, its proof, its profile and the selection.

The paper's modules: 1 ``fuse.py``, 2 ``analyse.py``, 3 ``plan.py``, 4 ``rebuild.py``, 5 ``profile.py``,
6 ``select.py``. ``graph.py`` parses the stored graph and ``read.py`` says what its operators do to
channels (``network.py``; one ``read_*.py`` per kind). The planner's steps are ``spaces.py`` (channels
that go together), ``demand.py`` (which are needed), ``carriers.py`` and ``widths.py``; what it decides
is ``parts.py``. ``rewrite.py`` makes the reduced graph, ``exactness.py`` proves the result. A run's
rounds are put through all of it by ``jobs/reduction.py``.
"""
