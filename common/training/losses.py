"""Losses of sentence-transformers that `embedding` and `rerank` learn by: which fit which examples."""

from collections import Counter
from collections.abc import Mapping, Sequence

from common.errors import UsageError
from common.suggestions import did_you_mean
from common.training.kinds import PAIR_TASKS, UNLABELED, Example
from common.training.options import TrainingOptions
from common.training.text_pairs import scores_of

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
#: Lowest and highest score that a loss takes.
_RANGES = {
    "CosineSimilarityLoss": (-1, 1),
    "ContrastiveLoss": (0, 1),
    "OnlineContrastiveLoss": (0, 1),
    "BinaryCrossEntropyLoss": (0, 1),
    **dict.fromkeys(LISTWISE, (0, 1e9)),
}
_ONLY_BITS = ("ContrastiveLoss", "OnlineContrastiveLoss")


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


def check_loss_fits(kind: str, training: TrainingOptions, examples: Sequence[Example]) -> None:
    """Check that a loss can learn from examples.

    Raises:
        UsageError: It learns from another kind, or a score is outside of its range.
    """
    loss = loss_of(kind, training)
    if loss not in LOSSES[kind]:
        wanted = next(UNLABELED[other] for other, names in LOSSES.items() if loss in names)
        raise UsageError(f"--loss {loss} learns from {wanted}; here are {UNLABELED[kind]}. Try {LOSSES[kind][0]}.")
    if loss == "TripletLoss" and any(len(example["texts"]) > 3 for example in examples):
        raise UsageError("--loss TripletLoss takes one negative for each text. Try MultipleNegativesRankingLoss.")
    if loss in LISTWISE and all(size < 2 for size in _documents(examples).values()):
        raise UsageError(f"--loss {loss} ranks the documents of a query, and no query has two.")
    low, high = _RANGES.get(loss, (-1e9, 1e9))
    wrong = next((score for score in scores_of(examples) if not low <= score <= high), None)
    if wrong is not None:
        instead = "LambdaLoss" if kind == "graded_relevance" and wrong > 0 else LOSSES[kind][0]
        advice = f", or try --loss {instead}" if loss != instead else ""
        raise UsageError(f"{loss} takes scores from {low:g} to {high:g}, found {wrong:g}. Scale them{advice}.")
    bad = next((score for score in scores_of(examples) if loss in _ONLY_BITS and score not in (0, 1)), None)
    if bad is not None:
        raise UsageError(f"--loss {loss} takes the scores 0 and 1, found {bad:g}. Try CoSENTLoss.")


def _documents(examples: Sequence[Example]) -> Counter[str]:
    """Return how many documents each query has."""
    found: Counter[str] = Counter()
    for example in examples:
        found[example["query"]] += len(example["documents"])
    return found
