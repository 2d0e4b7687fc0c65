"""The plan after a death: who runs next, who is given up."""

from collections.abc import Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.records import Failure
from workers.device.client.isolation import Isolation

DIED = Failure("worker_died", "")


def _play(plan: Isolation, killers: Collection[int], batch: int = 4) -> tuple[list[int], int]:
    """Run a plan to its end with records that always kill; return those done, and the deaths."""
    done: list[int] = []
    deaths = 0
    while wanted := plan.next():
        fatal = next((position for position in wanted if position in killers), None)
        if fatal is None:
            done += wanted
            plan.done(wanted)
        else:
            at = wanted.index(fatal) // batch * batch
            plan.died(wanted[at : at + batch], DIED)
            deaths += 1
    return done, deaths


def test_the_unsuspected_run_first_and_together():
    plan = Isolation(range(8))
    plan.died([4, 5], DIED)
    assert plan.next() == [0, 1, 2, 3, 6, 7]


def test_suspects_then_run_isolated():
    plan = Isolation([0, 1, 2])
    plan.died([1, 2], DIED)
    plan.done(plan.next())
    assert plan.next() == [1]
    plan.done([1])
    assert plan.next() == [2]


def test_a_record_that_kills_in_a_batch_and_then_alone_fails():
    plan = Isolation([0, 1])
    plan.died([0, 1], DIED)
    plan.died([0], Failure("timeout", "why"))
    assert plan.failures == {0: Failure("timeout", "why")}
    assert plan.next() == [1]


def test_one_death_alone_is_forgiven():
    plan = Isolation([0])
    plan.died([0], DIED)
    assert plan.next() == [0]
    plan.done([0])
    assert (plan.next(), plan.failures) == ([], {})


def test_when_nobody_is_known_all_are_suspect():
    plan = Isolation([0, 1, 2])
    plan.died([], DIED)
    assert plan.next() == [0]


def test_suspects_that_were_not_running_are_not_believed():
    plan = Isolation([0, 1])
    plan.died([7], DIED)
    assert plan.next() == [0]


def test_after_two_deaths_of_a_group_each_runs_alone():
    plan = Isolation(range(10))
    plan.died([0], DIED)
    plan.died([1], DIED)
    assert len(plan.next()) == 1


def test_a_cautious_plan_runs_each_by_itself_from_the_start():
    plan = Isolation([3, 4], isolated=True)
    assert plan.next() == [3]
    plan.died([3], DIED)
    assert plan.next() == [4]


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))), st.booleans())
def test_only_the_killers_fail_and_all_others_run_once(case: tuple[int, set[int]], isolated: bool):
    size, killers = case
    plan = Isolation(range(size), isolated=isolated)
    done, deaths = _play(plan, killers)
    assert sorted(done) == [position for position in range(size) if position not in killers]
    assert set(plan.failures) == killers
    assert deaths <= 2 * len(killers) + 2


@given(st.sets(st.integers(0, 19), max_size=5))
def test_even_deaths_laid_at_the_wrong_door_come_to_an_end(killers: set[int]):
    plan = Isolation(range(20))
    done: list[int] = []
    for _ in range(200):
        wanted = plan.next()
        if not wanted:
            break
        if killers & set(wanted):
            plan.died(wanted[-1:], DIED)  # the process dies later than it was harmed: the last one is blamed
        else:
            done += wanted
            plan.done(wanted)
    assert not plan.next()
    assert set(plan.failures) == killers
    assert sorted([*done, *plan.failures]) == list(range(20))


@pytest.mark.parametrize("isolated", [True, False])
def test_condemned_records_are_not_run_again(isolated: bool):
    plan = Isolation([1, 2, 3], isolated=isolated, excluded={2: DIED, 9: DIED})
    ran = []
    while wanted := plan.next():
        ran += wanted
        plan.done(wanted)
    assert ran == [1, 3]
    assert plan.failures == {2: DIED}
