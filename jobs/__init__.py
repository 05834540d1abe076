"""The jobs, each runnable as ``python -m jobs.NAME``: the only place that starts Ray drivers."""
