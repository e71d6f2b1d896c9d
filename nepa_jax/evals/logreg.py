"""Logistic regression on frozen features."""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

MAX_ITERATIONS = 60


def predict(
    train_features: np.ndarray, train_labels: np.ndarray, features: np.ndarray
) -> np.ndarray:
    """Classifies by multinomial logistic regression on standardised features.

    The protocol: every dimension to mean 0 and variance 1 over the training set; scikit-learn's
    L-BFGS with its default penalty (L2, C = 1), 60 iterations at most, full batch, no
    augmentation, nothing tuned. For sets that fit in memory.

    Args:
        train_features: float32 [M, D], with labels int [M].
        features: float32 [n, D].

    Returns:
        int [n].
    """
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=MAX_ITERATIONS))
    with warnings.catch_warnings():  # stopping at the limit is part of the protocol
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit(train_features, train_labels)
    return classifier.predict(features)
