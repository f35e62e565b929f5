import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from peers.election import leadership_order

RUN = "5" * 40
PEERS = st.lists(st.text(min_size=1, max_size=8), unique=True, max_size=12)


@settings(deadline=None, max_examples=100)
@given(PEERS, st.integers(0, 2**40), st.integers(0, 2**40), st.randoms(use_true_random=False))
def test_the_order_is_a_permutation_and_the_same_for_any_order_of_input(
    peers: list[str], outer_step: int, attempt: int, rng: random.Random
) -> None:
    order = leadership_order(RUN, outer_step, attempt, peers)
    assert sorted(order) == sorted(peers)
    shuffled = rng.sample(peers, len(peers))
    assert leadership_order(RUN, outer_step, attempt, shuffled) == order
    assert leadership_order(RUN, outer_step, attempt, set(peers)) == order
    assert leadership_order(RUN, outer_step, attempt, peers + peers) == order


@settings(deadline=None, max_examples=50)
@given(PEERS.filter(bool), st.integers(0, 999))
def test_who_leaves_changes_nothing_among_the_others(peers: list[str], attempt: int) -> None:
    order = leadership_order(RUN, 1, attempt, peers)
    assert leadership_order(RUN, 1, attempt, order[1:]) == order[1:]


def test_each_candidate_leads_about_equally_often() -> None:
    peers = [f"peer-{index}" for index in range(8)]
    leads = Counter(leadership_order(RUN, step, attempt, peers)[0] for step in range(1000) for attempt in range(4))
    # 500 expected, standard deviation 21: four of them each way.
    assert all(416 < leads[peer] < 584 for peer in peers), leads


def test_attempts_steps_and_runs_have_orders_of_their_own() -> None:
    peers = [f"peer-{index}" for index in range(12)]
    orders = {tuple(leadership_order(RUN, step, attempt, peers)) for step in range(10) for attempt in range(10)}
    assert len(orders) == 100
    assert leadership_order("6" * 40, 0, 0, peers) != leadership_order(RUN, 0, 0, peers)


def test_nobody_is_ordered_to_nobody() -> None:
    assert leadership_order(RUN, 0, 0, []) == []
