"""Shrunken linear discriminants where features outnumber people: solved among people, not among features.

Shape letters: N training rows, M other rows, F features, K classes.
"""

import numpy as np


def class_scores(x_NF: np.ndarray, class_N: np.ndarray, x_MF: np.ndarray) -> np.ndarray:
    """Discriminant scores ``(M, K)`` of ``x_MF``; the largest one is the class.

    What scikit-learn's ``LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")`` computes: the covariance within
    classes is the mean over classes of ``D ((1 - s) R + s m I) D`` with the correlation R, the standard deviations D
    and the shrinkage s of Ledoit and Wolf (2004). That is a diagonal plus N rank-one terms, so Woodbury's identity
    needs an ``(N, N)`` system where scikit-learn solves an ``(F, F)`` one.

    Args:
        x_NF: float64.
        class_N: 0 to K - 1, each at least once.
        x_MF: the rows that are asked of.
    """
    n_classes = int(class_N.max()) + 1
    prior_K = np.bincount(class_N) / len(class_N)
    mean_KF = np.stack([x_NF[class_N == k].mean(0) for k in range(n_classes)])
    root_NF, diagonal_F = np.empty_like(x_NF), np.zeros(x_NF.shape[1])
    for k in range(n_classes):
        in_class = class_N == k
        centred = x_NF[in_class] - mean_KF[k]
        deviation_F = centred.std(0)
        deviation_F[deviation_F <= 1e-12 * max(1.0, float(deviation_F.max()))] = 1.0  # constant, as StandardScaler
        shrinkage, level = _ledoit_wolf(centred / deviation_F)
        root_NF[in_class] = centred * (prior_K[k] * (1 - shrinkage) / in_class.sum()) ** 0.5
        diagonal_F += prior_K[k] * shrinkage * level * deviation_F**2
    diagonal_F = np.maximum(diagonal_F, 1e-12 * diagonal_F.max() + 1e-300)
    scaled_NF = root_NF / diagonal_F
    inner_NN = np.eye(len(x_NF)) + scaled_NF @ root_NF.T
    weights_KF = mean_KF / diagonal_F
    weights_KF = weights_KF - np.linalg.solve(inner_NN, scaled_NF @ mean_KF.T).T @ scaled_NF
    offset_K = np.log(prior_K) - 0.5 * (mean_KF * weights_KF).sum(1)
    return np.asarray(x_MF @ weights_KF.T + offset_K)


def _ledoit_wolf(z_NF: np.ndarray) -> tuple[float, float]:
    """Shrinkage and mean variance of centred rows, from their Gram matrix."""
    n, features = z_NF.shape
    gram_NN = z_NF @ z_NF.T
    level = float(np.trace(gram_NN)) / n / features
    squared = float((gram_NN**2).sum()) / n**2
    noise = (float((np.diag(gram_NN) ** 2).sum()) / n - squared) / n
    distance = squared - features * level**2
    noise = min(noise, distance)
    return (noise / distance if noise > 0 else 0.0), level
