"""Chats: which parameters make one, and where the system message goes."""

from typing import Any

import pytest

from common.chat import is_chat, user_message, with_system_message
from common.errors import ModelError


@pytest.mark.parametrize(
    ("params", "chat"),
    [({}, False), ({"chat": True}, True), ({"chat": False}, False), ({"system": "a"}, True), ({"prefix": "a"}, False)],
)
def test_a_text_is_a_message_if_the_job_says_so_or_has_a_system_message(params: dict[str, Any], chat: bool) -> None:
    assert is_chat(params) is chat


@pytest.mark.parametrize("params", [{"chat": False, "system": "a"}, {"chat": True, "prefix": "a"}])
def test_parameters_of_chats_and_of_raw_text_conflict(params: dict[str, Any]) -> None:
    with pytest.raises(ModelError) as caught:
        is_chat(params)
    assert caught.value.code == "bad_param"


def test_a_system_message_of_the_record_is_kept() -> None:
    asked = user_message("a")
    assert with_system_message(asked, None) == [{"role": "user", "content": "a"}]
    assert with_system_message(asked, "b") == [{"role": "system", "content": "b"}, *asked]
    own = [{"role": "system", "content": "c"}, *asked]
    assert with_system_message(own, "b") == own
