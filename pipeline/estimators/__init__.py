"""Estimators with scikit-learn's names and contract over the solvers; one a module, imported by its own name."""
