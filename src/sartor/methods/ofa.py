"""OFA (Cai et al. 2020, "Once-for-all: Train one network and specialize it for efficient deployment", arXiv:1908.09791)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sartor.recipes.one_shot import OneShotResult


def ofa(net: Any, data: Any, *, rounds: int = 30, **settings: Any) -> OneShotResult:
    """Progressive shrinking (kernels, depths, widths, each taught by the largest network), then a search on predicted accuracy.

    Sections 3.3 and 3.4: the largest network has 180 epochs, kernels 120, depths and widths 25 and 120 each: 590. A predictor learns from
    sub-nets, and evolution on it takes seconds for each device; :func:`specialise` does this again for other limits.

    Args:
        net: a searchable network with choices of kernel, depth, expand or width; it is copied.
        rounds: generations of 100 on the predictor.
        settings: those of :class:`sartor.methods.oneshot.Exploring` (`limits`, `costs`, `ranks` ...; `evaluations` is 100, of which four
            fifths teach the predictor); the rest of :func:`sartor.recipes.shrinking.train_shrinking`. Of a budget in seconds,
            training takes four fifths.
    """
    from sartor.methods import oneshot

    how, begun = oneshot.exploring({"evaluations": 100, **_taken(settings)}), oneshot.copied(net)
    oneshot.refuse_few(how.evaluations * 4 // 5, how.evaluations)
    training, left = oneshot.budgeted(settings, epochs=590)
    trained = oneshot.train_shrinking(begun, data, **training)
    seed, samples = settings.get("seed", 0), how.evaluations * 4 // 5
    return oneshot.concluded(
        begun, data, trained, how, left,
        lambda explore: oneshot.predicted_first(explore, begun, how.costs, samples=samples, rounds=rounds, seed=seed), seed=seed,
    )  # fmt: skip


def specialise(result: OneShotResult, data: Any, *, rounds: int = 30, seed: int = 0, **settings: Any) -> OneShotResult:
    """The best sub-net of a trained once-for-all network for other `limits` and `costs`, without training.

    Args:
        result: of :func:`ofa`, or of any method with a trained supernet; its evaluated sub-nets teach the predictor.
        settings: of :class:`sartor.methods.oneshot.Exploring`.
    """
    from sartor.methods import oneshot
    from sartor.recipes.sandwich import SupernetResult

    how = oneshot.exploring({"history": result.trials, **settings})
    known = len(how.history)
    return oneshot.concluded(
        result.net, data, SupernetResult(result.steps, 0.0, 0.0, 0.0), how, None,
        lambda explore: oneshot.predicted_first(explore, result.net, how.costs, samples=known, rounds=rounds, seed=seed), seed=seed,
    )  # fmt: skip


def _taken(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of the exploration, taken out of the others."""
    from sartor.methods.oneshot import EXPLORING

    return {name: settings.pop(name) for name in EXPLORING if name in settings}
