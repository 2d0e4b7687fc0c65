"""Requests that score pairs of texts: `/v1/rerank` and `/v1/score`, as vLLM takes them."""

from collections.abc import Mapping

from common.params import integer
from common.records import Json
from producer.openai.errors import bad_request
from producer.openai.fields import check_known, checked_param, texts_of

#: The two sides of the pairs of a score, by the names that vLLM has for them.
_SIDES = (("text_1", "text_2"), ("data_1", "data_2"), ("queries", "documents"), ("queries", "items"))
_SIDE_NAMES = frozenset(name for names in _SIDES for name in names)


def read_rerank(body: Mapping[str, Json]) -> dict[str, Json]:
    """Return the input of a record that ranks documents by a query.

    Raises:
        RecordError: `bad_request`.
    """
    check_known(body, frozenset({"model", "query", "documents", "top_n"}))
    if not isinstance(body.get("query"), str):
        raise bad_request("query must be a text")
    documents = texts_of(body, "documents")
    top = None if body.get("top_n") is None else checked_param(body, "top_n", integer(0))
    # vLLM takes 0, its default, for all of them.
    return {"rankings": [{"query": body["query"], "documents": documents}], "top_n": top or None, "options": {}}


def read_score(body: Mapping[str, Json]) -> dict[str, Json]:
    """Return the input of a record that scores pairs: one text with each of several, or texts side by side.

    Raises:
        RecordError: `bad_request`.
    """
    check_known(body, _SIDE_NAMES | {"model"})
    given = {name for name in _SIDE_NAMES if body.get(name) is not None}
    names = next((names for names in _SIDES if given == set(names)), None)
    if names is None:
        raise bad_request(f"a score needs {' or '.join(f'{one} and {other}' for one, other in _SIDES)}")
    queries, documents = (texts_of(body, name) for name in names)
    if len(queries) == 1:
        return {"rankings": [{"query": queries[0], "documents": documents}], "options": {}}
    if len(queries) != len(documents):
        raise bad_request(
            f"{names[0]} has {len(queries)} texts and {names[1]} has {len(documents)}; expected one, or as many"
        )
    pairs = [{"query": query, "documents": [document]} for query, document in zip(queries, documents, strict=True)]
    return {"rankings": pairs, "options": {}}
