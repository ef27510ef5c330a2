"""Estimators with scikit-learn's names and contract over the solvers."""

from pipeline.estimators.anomaly_detector import AnomalyDetector
from pipeline.estimators.federated_pca import FederatedPCA
from pipeline.estimators.pca import PCA
from pipeline.estimators.robust_pca import RobustPCA
from pipeline.estimators.truncated_svd import TruncatedSVD

__all__ = ["PCA", "AnomalyDetector", "FederatedPCA", "RobustPCA", "TruncatedSVD"]
