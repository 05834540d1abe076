"""Phase 1: a dense network and its images to one sparse checkpoint per compression ratio.

``imp`` is the algorithm, ``ranking`` decides which weights stay, ``loop`` trains one round,
``worker`` runs it all on a Ray cluster (and is imported by who has one).
"""
