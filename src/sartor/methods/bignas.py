"""BigNAS (Yu et al. 2020, "BigNAS: Scaling up neural architecture search with big single-stage models", arXiv:2003.11142)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sartor.recipes.one_shot import OneShotResult

LONG_EPOCHS = 100.0


def bignas(net: Any, data: Any, *, coarse: int = 100, **settings: Any) -> OneShotResult:
    """One stage of training by the sandwich rule with in-place distillation; sub-nets are used as they are, after calibration.

    360 epochs; the largest, the smallest and two random sub-nets a step, regularisation of the largest alone, residual blocks that start as
    the identity, a learning rate that decays exponentially to a constant twentieth (section 3.1); selection from a coarse grid to fine
    mutations (section 3.2). The optimiser is the recipe's SGD, not the paper's RMSProp. A budget of fewer than
    :data:`LONG_EPOCHS` epochs (a guess), or one in steps or seconds, has a cosine to zero instead: after 5 epochs of Fashion-MNIST the mean
    of 20 random sub-nets was right on 2.1 points more of the validation images.

    Args:
        net: a searchable network; it is copied.
        coarse: points of the grid; the other evaluations are mutations.
        settings: those of :class:`sartor.methods.oneshot.Exploring` (`limits`, `costs`, `evaluations`, `ranks` ...); the rest
            of :func:`sartor.recipes.sandwich.train_sandwich`. Of a budget in seconds, training takes four fifths.

    Raises:
        UserError: for `coarse` below 1, before anything is trained.
    """
    from sartor.methods import oneshot
    from sartor.searchers.variation import whole

    whole("bignas", "coarse", coarse, 1)
    how = oneshot.exploring(settings)
    begun: Any = oneshot.copied(net)
    training, left = oneshot.budgeted(settings, epochs=360, drop_path=0.2, zero_residuals=True)
    if (training.get("epochs") or 0.0) >= LONG_EPOCHS:
        training = {"schedule": "exponential", "floor": 0.05, **training}
    trained = oneshot.train_sandwich(begun, data, **training)
    seed, first = settings.get("seed", 0), min(coarse, how.evaluations)
    return oneshot.concluded(
        begun, data, trained, how, left,
        lambda explore: oneshot.coarse_to_fine(explore, begun.space, coarse=first, fine=how.evaluations - first, seed=seed), seed=seed,
    )  # fmt: skip
