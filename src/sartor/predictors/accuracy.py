"""Accuracy of an architecture from its encoding, learned from a few hundred evaluated ones."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sartor.errors import UserError
from sartor.predictors.ensemble import fit_boosting, fit_mlp
from sartor.predictors.kernel import KERNELS, fit_kernel

Floats = NDArray[np.float64]
SCHEMA = 1
#: in order of simplicity: of two that rank equally well the earlier is taken
CANDIDATES = ("ridge", "ridge_pairs", "gp", "boosting", "mlp")
FEWEST = 10


class _Model(Protocol):
    def predict(self, features: Floats) -> tuple[Floats, Floats]: ...


class Predictor:
    """A fitted predictor; made by :func:`fit`.

    Attributes:
        kind: the chosen candidate.
        quality: ``{"kind", "samples", "kendall_tau", "rmse", "coverage_90", "candidates": {kind: tau}}``, all cross-validated on
            samples that the fitted fold did not see. The chosen candidate's tau is the best of several and so a little optimistic.
            `coverage_90` is the share of samples within the central 90 % interval.
    """

    def __init__(self, kind: str, x: Floats, y: Floats, seed: int, calibration: tuple[float, float], quality: dict[str, Any]) -> None:
        self.kind, self.quality = kind, quality
        self._x, self._y, self._seed, self._calibration = x, y, seed, calibration
        self._model = _fit_one(kind, x, y, seed)

    def predict(self, features: ArrayLike) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the accuracy, each `(n,)`, for encodings `(n, dims)`.

        The deviation is that of an observation: the model's own, scaled, and the residual noise, both calibrated by cross-validation.

        Raises:
            UserError: if the number of columns is not that of the training encodings.
        """
        x = np.atleast_2d(np.asarray(features, dtype=np.float64))
        if x.shape[1] != self._x.shape[1]:
            raise UserError(f"expected encodings of {self._x.shape[1]} columns, got {x.shape[1]}; encode with the space of the samples")
        parts = [self._model.predict(x[i : i + 4096]) for i in range(0, len(x), 4096)]
        if not parts:
            return np.zeros(0), np.zeros(0)
        return np.concatenate([m for m, _ in parts]), _deviation(np.concatenate([s for _, s in parts]), self._calibration)

    def save(self, path: str | Path) -> None:
        """Write the samples and the choice as ``.npz``, atomically: :meth:`load` fits the same model again, so nothing is pickled."""
        head = {"schema": SCHEMA, "kind": self.kind, "seed": self._seed, "calibration": self._calibration, "quality": self.quality}
        handle, temporary = tempfile.mkstemp(dir=Path(path).parent, prefix=f".{Path(path).name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez_compressed(file, x=self._x, y=self._y, head=np.array(json.dumps(head)))
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    @staticmethod
    def load(path: str | Path) -> Predictor:
        """Inverse of :meth:`save`.

        Raises:
            UserError: if the file is missing, damaged or of another schema.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                head, x, y = json.loads(str(file["head"])), file["x"], file["y"]
        except FileNotFoundError as error:
            raise UserError(f"predictor {path} does not exist; check the path") from error
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"predictor {path} cannot be read ({error}); fit it again") from error
        if head.get("schema") != SCHEMA:
            raise UserError(f"predictor {path} has schema {head.get('schema')}, expected {SCHEMA}; fit it again")
        return Predictor(head["kind"], x, y, head["seed"], tuple(head["calibration"]), head["quality"])


def fit(features: ArrayLike, targets: ArrayLike, *, candidates: Sequence[str] = CANDIDATES, folds: int = 5, seed: int = 0) -> Predictor:
    """Fit every candidate, and keep the one whose cross-validated predictions rank best (Kendall's tau).

    Candidates: Bayesian ridge regression on the choices (`ridge`), and on their pairs (`ridge_pairs`), a Gaussian process (`gp`), gradient
    boosting (`boosting`), an ensemble of small networks (`mlp`).

    Args:
        features: encodings (n, dims), ``space.encode(archs)``.
        targets: accuracies (n,), any unit.
        folds: of the cross-validation.

    Raises:
        UserError: for fewer than ten samples, NaN, shapes that do not match, or an unknown candidate.
    """
    x, y = np.asarray(features, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    if x.ndim != 2 or y.shape != (len(x),):
        raise UserError(f"expected encodings (n, dims) and accuracies (n,), got {x.shape} and {y.shape}")
    if len(x) < FEWEST:
        raise UserError(f"an accuracy predictor needs at least {FEWEST} samples, got {len(x)}; evaluate more architectures")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise UserError("encodings or accuracies hold NaN or infinity; leave failed evaluations out")
    unknown = [kind for kind in candidates if kind not in CANDIDATES]
    if unknown or not candidates:
        raise UserError(f"expected candidates among {', '.join(CANDIDATES)}, got {unknown or 'none'}")
    folds = min(max(folds, 2), len(x))
    unseen = {kind: _cross_validate(kind, x, y, folds, seed) for kind in candidates}
    taus = {kind: kendall(mean, y) for kind, (mean, _) in unseen.items()}
    kind = max(candidates, key=lambda k: (round(taus[k], 3), -CANDIDATES.index(k)))
    mean, own = unseen[kind]
    calibration = _calibrate(mean - y, own)
    z = np.abs(mean - y) / _deviation(own, calibration)
    quality = {
        "kind": kind,
        "samples": len(y),
        "kendall_tau": taus[kind],
        "rmse": float(np.sqrt(((mean - y) ** 2).mean())),
        "coverage_90": float((z <= 1.6449).mean()),
        "candidates": taus,
    }
    return Predictor(kind, x, y, seed, calibration, quality)


def kendall(a: ArrayLike, b: ArrayLike) -> float:
    """Kendall's tau-b; 0 where either side is constant and so ranks nothing."""
    from scipy.stats import kendalltau

    tau = float(kendalltau(a, b).statistic)
    return tau if np.isfinite(tau) else 0.0


def _fit_one(kind: str, x: Floats, y: Floats, seed: int) -> _Model:
    if kind in KERNELS:
        return fit_kernel(kind, x, y)
    return fit_boosting(x, y, seed=seed) if kind == "boosting" else fit_mlp(x, y, seed=seed)


def _cross_validate(kind: str, x: Floats, y: Floats, folds: int, seed: int) -> tuple[Floats, Floats]:
    """Mean and the model's own deviation, each (n,), of every sample by the model that did not see it."""
    mean, own = np.empty(len(y)), np.empty(len(y))
    for held in np.array_split(np.random.default_rng(seed).permutation(len(y)), folds):
        kept = np.setdiff1d(np.arange(len(y)), held)
        mean[held], own[held] = _fit_one(kind, x[kept], y[kept], seed).predict(x[held])
    return mean, own


def _calibrate(error: Floats, own: Floats) -> tuple[float, float]:
    """(scale, noise) that maximise the Gaussian likelihood of cross-validated errors under variance ``(scale * own)² + noise²``."""
    rms = max(float(np.sqrt((error**2).mean())), 1e-9)
    typical = max(float(np.sqrt((own**2).mean())), 1e-12)
    best = (np.inf, 0.0, rms)
    for share in np.linspace(0.0, 1.0, 21):  # of the variance that the model's own deviation accounts for
        for total in rms * np.linspace(0.7, 1.5, 17):
            scale, noise = total * np.sqrt(share) / typical, total * np.sqrt(1.0 - share)
            variance = (scale * own) ** 2 + noise**2 + 1e-18
            negative = float((np.log(variance) + error**2 / variance).sum())
            if negative < best[0]:
                best = (negative, float(scale), float(noise))
    return best[1], best[2]


def _deviation(own: Floats, calibration: tuple[float, float]) -> Floats:
    scale, noise = calibration
    return np.sqrt((scale * own) ** 2 + noise**2 + 1e-18)
