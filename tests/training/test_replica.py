import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

from runtime.config import InnerSection, OuterSection, RunConfig
from runtime.errors import ConfigError
from runtime.training.data import Corpus, load_corpus
from runtime.training.inner import inner_learning_rate
from runtime.training.model import flatten
from runtime.training.replica import Replica

CONFIG = replace(
    RunConfig(),
    inner=InnerSection(steps=4, batch=4, warmup_steps=5),
    outer=OuterSection(steps=8, momentum_ramp_steps=8),
)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return load_corpus("stdlib", None, 0.05)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def a_replica(corpus: Corpus, peer_seed: int = 0, config: RunConfig = CONFIG) -> Replica:
    return Replica(config, corpus, device="cpu", peer_seed=peer_seed)


def never() -> bool:
    return False


def stop_after(replica: Replica, steps: int) -> Callable[[], bool]:
    return lambda: replica.inner_steps_done >= steps


def local_of(replica: Replica) -> torch.Tensor:
    return flatten(replica._model.parameters())


def test_a_fresh_replica_is_at_its_anchor(corpus: Corpus) -> None:
    replica = a_replica(corpus)
    assert replica.n_elements == 136_448
    assert replica.outer_step == replica.inner_steps_done == 0
    assert not replica.pseudo_gradient().any()
    assert not replica.momentum_P.any()
    assert replica.validation_loss(2) == pytest.approx(math.log(256), abs=0.1)


def test_one_peer_alone_learns(corpus: Corpus) -> None:
    config = replace(CONFIG, inner=InnerSection(steps=10, batch=8, warmup_steps=10))
    replica = a_replica(corpus, config=config)
    before = replica.validation_loss(8)
    for _ in range(6):
        replica.train(never)
        replica.apply_outer_step(replica.pseudo_gradient())
    assert replica.outer_step == 6
    assert replica.validation_loss(8) < before - 1.0


def test_results_count_steps_and_tokens(corpus: Corpus) -> None:
    result = a_replica(corpus).train(never)
    assert (result.inner_steps, result.tokens) == (4, 4 * 4 * 64)
    assert math.log(256) - 1 < result.loss < math.log(256)
    assert result.seconds > 0


def test_a_stop_before_the_first_step_has_a_finite_loss(corpus: Corpus) -> None:
    result = a_replica(corpus).train(lambda: True)
    assert (result.inner_steps, result.tokens) == (0, 0)
    assert math.isfinite(result.loss)


def test_an_interrupted_phase_goes_on_to_the_same_bits(corpus: Corpus) -> None:
    whole, halves = a_replica(corpus), a_replica(corpus)
    expected = whole.train(never)
    halfway = halves.train(stop_after(halves, 2))
    assert (halfway.inner_steps, halfway.tokens) == (2, 2 * 4 * 64)
    resumed = halves.train(never)
    assert (resumed.inner_steps, resumed.tokens, resumed.loss) == (4, expected.tokens, expected.loss)
    assert torch.equal(halves.pseudo_gradient(), whole.pseudo_gradient())


def test_an_inner_step_lasts_as_long_as_a_benchmark_says_and_a_stop_is_seen_in_its_sleep(corpus: Corpus) -> None:
    slow = Replica(CONFIG, corpus, device="cpu", peer_seed=0, inner_step_s=0.2)
    assert slow.train(stop_after(slow, 2)).seconds >= 0.2
    asleep = Replica(CONFIG, corpus, device="cpu", peer_seed=0, inner_step_s=3600.0)
    assert asleep.train(stop_after(asleep, 1)).inner_steps == 1


def test_after_an_outer_step_nothing_is_left_over(corpus: Corpus) -> None:
    replica = a_replica(corpus)
    replica.train(never)
    replica.apply_outer_step(replica.pseudo_gradient() * 0.5)
    assert replica.outer_step == 1
    assert replica.inner_steps_done == 0
    assert not replica.pseudo_gradient().any()
    assert replica.train(lambda: True).tokens == 0


def test_what_missed_the_mean_is_exactly_what_is_carried(corpus: Corpus) -> None:
    replica = a_replica(corpus)
    replica.train(never)
    g_P = replica.pseudo_gradient().clone()
    missed = [(100, 5_000), (60_000, 136_448)]
    replica.apply_outer_step(g_P * 0.3, missed=missed)
    expected_P = torch.zeros_like(g_P)
    for start, stop in missed:
        expected_P[start:stop] = g_P[start:stop]
    assert torch.allclose(replica.pseudo_gradient(), expected_P, atol=1e-7)
    n_missed = 4_900 + 76_448
    result = replica.train(lambda: True)
    assert result.tokens == 4 * 4 * 64 * n_missed // 136_448
    assert result.inner_steps == 0


def test_a_straggler_that_missed_everything_carries_its_work_into_a_whole_new_phase(corpus: Corpus) -> None:
    replica, other = a_replica(corpus, 0), a_replica(corpus, 1)
    other.train(never)
    replica.train(stop_after(replica, 3))
    g_P = replica.pseudo_gradient().clone()
    replica.apply_outer_step(other.pseudo_gradient(), missed=[(0, replica.n_elements)])
    other.apply_outer_step(other.pseudo_gradient())
    assert replica.state_digest() == other.state_digest()
    assert replica.inner_steps_done == 0
    assert replica.outer_step == 1
    assert torch.allclose(replica.pseudo_gradient(), g_P, atol=1e-7)
    result = replica.train(never)
    assert (result.inner_steps, result.tokens) == (4, (3 + 4) * 4 * 64)


def test_peers_that_apply_the_same_means_have_the_same_bits(corpus: Corpus) -> None:
    peers = [a_replica(corpus, peer_seed) for peer_seed in range(3)]
    assert len({peer.state_digest() for peer in peers}) == 1
    for outer_step in range(3):
        for peer in peers:
            peer.train(never)
        mean_P = torch.stack([peer.pseudo_gradient() for peer in peers]).mean(0)
        for i, peer in enumerate(peers):
            # What a peer missed is its own business and must not reach its anchor.
            peer.apply_outer_step(mean_P, missed=[(0, 50_000)] if i == outer_step else ())
        assert len({peer.state_digest() for peer in peers}) == 1
    assert len({peer.pseudo_gradient().sum().item() for peer in peers}) > 1


def test_the_mean_of_equal_peers_is_one_peer(corpus: Corpus) -> None:
    alone, *equals = (a_replica(corpus, peer_seed=5) for _ in range(5))
    for _ in range(2):
        for peer in (alone, *equals):
            peer.train(never)
        alone.apply_outer_step(alone.pseudo_gradient())
        mean_P = torch.stack([peer.pseudo_gradient() for peer in equals]).mean(0)
        for peer in equals:
            peer.apply_outer_step(mean_P)
    assert all(peer.state_digest() == alone.state_digest() for peer in equals)


def test_peers_with_other_seeds_train_on_other_text(corpus: Corpus) -> None:
    first, second = a_replica(corpus, 0), a_replica(corpus, 1)
    first.train(never)
    second.train(never)
    assert not torch.equal(first.pseudo_gradient(), second.pseudo_gradient())


def test_measuring_the_anchor_changes_nothing(corpus: Corpus) -> None:
    measured, unmeasured = a_replica(corpus), a_replica(corpus)
    fresh_loss = measured.validation_loss(2)
    for replica in (measured, unmeasured):
        replica.train(stop_after(replica, 2))
    before_P, global_state = local_of(measured), torch.get_rng_state()
    assert measured.validation_loss(2) == fresh_loss
    assert torch.equal(local_of(measured), before_P)
    assert torch.equal(torch.get_rng_state(), global_state)
    for replica in (measured, unmeasured):
        replica.train(never)
    assert torch.equal(local_of(measured), local_of(unmeasured))


def test_a_loaded_state_is_copied_and_drops_the_local_work(corpus: Corpus) -> None:
    donor, joiner = a_replica(corpus, 0), a_replica(corpus, 1)
    donor.train(never)
    donor.apply_outer_step(donor.pseudo_gradient())
    joiner.train(never)
    joiner.load_state(donor.outer_step, donor.anchor_P, donor.momentum_P)
    assert joiner.state_digest() == donor.state_digest()
    assert joiner.outer_step == 1
    assert joiner.inner_steps_done == 0
    assert not joiner.pseudo_gradient().any()
    donor.train(never)
    donor.apply_outer_step(donor.pseudo_gradient())
    assert joiner.state_digest() != donor.state_digest()


@pytest.mark.parametrize("missed", [[(0, 136_449)], [(-1, 4)], [(5, 4)], [(0, 10), (9, 20)]])
def test_ranges_that_do_not_fit_change_nothing(corpus: Corpus, missed: list[tuple[int, int]]) -> None:
    replica = a_replica(corpus)
    replica.train(stop_after(replica, 1))
    before = (replica.state_digest(), replica.pseudo_gradient().clone())
    with pytest.raises(ValueError, match="overlap or leave"):
        replica.apply_outer_step(before[1], missed=missed)
    assert replica.state_digest() == before[0]
    assert torch.equal(replica.pseudo_gradient(), before[1])
    assert replica.outer_step == 0


def test_a_state_of_another_model_is_refused(corpus: Corpus) -> None:
    replica = a_replica(corpus)
    with pytest.raises(ValueError, match="136448 elements"):
        replica.load_state(4, torch.zeros(10), torch.zeros(10))
    assert replica.outer_step == 0


def test_a_gradient_that_is_not_finite_does_not_move_the_parameters(corpus: Corpus) -> None:
    replica = a_replica(corpus)
    broken = torch.full((replica.n_elements,), 1e30)
    replica.load_state(0, broken, torch.zeros_like(broken))
    result = replica.train(never)
    assert (result.inner_steps, result.tokens) == (4, 0)
    assert math.isfinite(result.loss)
    assert not replica.pseudo_gradient().any()


def test_the_learning_rate_warms_up_and_falls_to_its_last_share() -> None:
    section = InnerSection(learning_rate=1.0, warmup_steps=50, final_ratio=0.1)
    rates = [inner_learning_rate(step, 500, section) for step in range(501)]
    assert rates[0] == pytest.approx(0.02)
    assert rates[49] == rates[50] == 1.0
    assert rates[275] == pytest.approx(0.55)
    assert rates[500] == pytest.approx(0.1)
    assert rates[50:] == sorted(rates[50:], reverse=True)
    assert inner_learning_rate(10_000, 500, section) == pytest.approx(0.1)


def test_a_device_that_is_not_there_is_one_sentence(corpus: Corpus) -> None:
    for device in ("cuda:99", "quantum", "meta"):
        with pytest.raises(ConfigError, match="is not available here"):
            Replica(CONFIG, corpus, device=device, peer_seed=0)


def test_text_shorter_than_a_sequence_is_one_sentence() -> None:
    short = Corpus(torch.zeros(64, dtype=torch.uint8), torch.zeros(5000, dtype=torch.uint8), 1)
    with pytest.raises(ConfigError, match="Only 64 bytes"):
        a_replica(short)
