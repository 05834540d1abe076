"""What is measured, and how: see ``benchmarks/README.md``."""
