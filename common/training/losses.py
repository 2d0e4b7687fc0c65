"""Losses of sentence-transformers that `embedding` and `rerank` learn by: which fit which examples."""

from collections.abc import Callable, Mapping, Sequence

from common.errors import UsageError
from common.suggestions import did_you_mean
from common.training.kinds import PAIR_TASKS, UNLABELED, Example
from common.training.options import TrainingOptions
from common.training.text_pairs import first_text, ranked_queries, scores_of

_IN_BATCH = ("MultipleNegativesRankingLoss", "CachedMultipleNegativesRankingLoss")
#: Losses that rank all documents of a query, instead of judging each pair by itself.
LISTWISE = ("LambdaLoss", "ListNetLoss", "RankNetLoss")
_RELEVANCE = ("BinaryCrossEntropyLoss", *LISTWISE)
#: By the kind of examples, the losses that learn from them; the first is the default.
LOSSES: Mapping[str, tuple[str, ...]] = {
    "pairs": (*_IN_BATCH, "MultipleNegativesSymmetricRankingLoss", "CachedMultipleNegativesSymmetricRankingLoss"),
    "triplets": (*_IN_BATCH, "TripletLoss"),
    "scored_pairs": ("CoSENTLoss", "AnglELoss", "CosineSimilarityLoss", "ContrastiveLoss", "OnlineContrastiveLoss"),
    "relevance": _RELEVANCE,
    "graded_relevance": _RELEVANCE,
}
#: The scores that a loss takes, in words; one that is not here takes all.
_SCORES: Mapping[str, tuple[str, Callable[[float], bool]]] = {
    "CosineSimilarityLoss": ("from -1 to 1", lambda score: -1 <= score <= 1),
    **dict.fromkeys(("ContrastiveLoss", "OnlineContrastiveLoss"), ("0 and 1", lambda score: score in (0, 1))),
    "BinaryCrossEntropyLoss": ("from 0 to 1", lambda score: 0 <= score <= 1),
    **dict.fromkeys(LISTWISE, ("of 0 and above", lambda score: score >= 0)),
}


def loss_of(kind: str, training: TrainingOptions) -> str:
    """Return the name of the loss for examples of a kind."""
    return training.loss or LOSSES[kind][0]


def uses_other_examples(loss: str) -> bool:
    """Whether a loss takes the other examples of a batch as negatives, so that none may occur twice there."""
    return "MultipleNegatives" in loss


def check_loss_options(task: str, training: TrainingOptions) -> None:
    """Check the options that only the losses of some tasks have.

    Raises:
        UsageError: The task has no such option, there is no such loss, or a dimension is there twice.
    """
    dims = training.matryoshka_dims
    if training.loss is not None:
        known = {name for kind in PAIR_TASKS.get(task, ()) for name in LOSSES[kind]}
        if not known:
            raise UsageError(f"--loss is for {' and '.join(PAIR_TASKS)}; {task} has a loss of its own. Leave it out.")
        if training.loss not in known:
            raise UsageError(f"--loss {training.loss}: {task} has no such loss. {did_you_mean(training.loss, known)}")
    if dims is not None and task != "embedding":
        raise UsageError(f"--matryoshka-dims is for embedding; {task} has no vectors. Leave it out.")
    if dims is not None and (not dims or len(set(dims)) < len(dims)):
        raise UsageError(f"--matryoshka-dims {','.join(map(str, dims))}: name each dimension once.")


def check_loss_fits(
    kind: str, training: TrainingOptions, train: Sequence[Example], evaluation: Sequence[Example]
) -> None:
    """Check that a loss can learn from examples, and measure those to evaluate with.

    Raises:
        UsageError: It learns from another kind, takes no such score, or finds nothing to compare.
    """
    loss = loss_of(kind, training)
    if loss not in LOSSES[kind]:
        wanted = next(UNLABELED[other] for other, names in LOSSES.items() if loss in names)
        raise UsageError(f"--loss {loss} learns from {wanted}; here are {UNLABELED[kind]}. Try {LOSSES[kind][0]}.")
    if loss == "TripletLoss" and any(len(example["texts"]) > 3 for example in (*train, *evaluation)):
        raise UsageError("--loss TripletLoss takes one negative for each text. Try MultipleNegativesRankingLoss.")
    if kind == "pairs" and (training.batch_size < 2 or _share_a_text(train)):
        raise UsageError(
            f"{loss} takes the other texts of a batch as negatives, and there are none: give at least two "
            "examples that share no text and a --batch-size of at least 2, or negatives of their own."
        )
    for examples, where in ((train, ""), (evaluation, " of the evaluation set")):
        if loss in LISTWISE and examples and not _has_lists(examples):
            raise UsageError(f"--loss {loss} ranks the documents of a query, and no query{where} has two.")
        _check_scores(kind, loss, examples)


def _share_a_text(examples: Sequence[Example]) -> bool:
    """Whether all examples have the same text in one place, so that no two may be in one batch."""
    return any(len(set(column)) < 2 for column in zip(*(example["texts"] for example in examples), strict=True))


def _has_lists(examples: Sequence[Example]) -> bool:
    return any(len(documents) > 1 for documents, _ in ranked_queries(examples).values())


def _check_scores(kind: str, loss: str, examples: Sequence[Example]) -> None:
    wrong = next((score for score in scores_of(examples) if not _takes(loss, score)), None)
    if wrong is None:
        return
    text = next(first_text(example) for example in examples if wrong in scores_of([example]))
    other = next((name for name in LOSSES[kind] if all(_takes(name, score) for score in scores_of(examples))), None)
    advice = f", or try --loss {other}" if other else ""
    raise UsageError(
        f"{loss} takes scores {_SCORES[loss][0]}, found {wrong:g} with the text {text!r:.80}. Scale them{advice}."
    )


def _takes(loss: str, score: float) -> bool:
    return loss not in _SCORES or _SCORES[loss][1](score)
