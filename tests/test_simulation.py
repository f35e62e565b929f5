"""Whole swarms on a virtual clock and a seeded network: see ``simulation.py`` for what is real and what is not."""

import asyncio
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from simulation import N_ELEMENTS, SimulatedTrainer, Swarm, simulate

from peers.membership import SILENCE_LEAST_S
from peers.messages import Role

LAST = 8


async def churn(swarm: Swarm) -> None:
    """Three to seven peers, some slow; crashes, broken connections and newcomers at random moments."""
    rng = swarm.rng
    n_peers = rng.randint(3, 7)
    swarm.start("p0", established=True)
    for index in range(1, n_peers):
        swarm.start(f"p{index}", phase_s=rng.choice([2.0, 2.0, 2.0, 5.0]))

    async def chaos() -> None:
        newest = n_peers
        for _ in range(rng.randint(2, 8)):
            await asyncio.sleep(rng.expovariate(1 / 3.0))
            alive = [peer for peer in swarm.peers.values() if not peer.task.done()]
            members = [peer for peer in alive if peer.averager.established]
            fault = rng.choice(["crash", "crash", "cut", "join"])
            if fault == "crash" and len(members) >= 4:
                await swarm.crash(rng.choice(members).name)
            elif fault == "cut" and len(members) >= 3:
                one, other = rng.sample(members, 2)
                swarm.tell(f"the connections between {one.name} and {other.name} break")
                swarm.network.cut(one.peer, other.peer)
            elif fault == "join" and max(swarm.steps, default=0) < LAST - 2:
                swarm.start(f"p{newest}")
                newest += 1

    trouble = asyncio.get_running_loop().create_task(chaos())
    await swarm.finish(600)
    trouble.cancel()


async def quiet(swarm: Swarm) -> None:
    swarm.start("p0", established=True)
    for index in range(1, 4):
        swarm.start(f"p{index}")
    await swarm.finish(300)


@pytest.mark.parametrize("seed", range(20))
def test_every_survivor_commits_the_same_bytes_whoever_crashes(seed: int) -> None:
    swarm = simulate(seed, churn, last_outer_step=LAST, quorum=2)
    assert sorted(swarm.steps) == list(range(1, LAST + 1))
    ends = {peer.trainer.state_digest() for peer in swarm.peers.values()}
    assert len(ends) == 1
    assert {peer.trainer.outer_step for peer in swarm.peers.values()} == {LAST}


def test_a_seed_replays_exactly() -> None:
    first, second = (simulate(11, churn, last_outer_step=LAST, quorum=2) for _ in range(2))
    assert first.story == second.story
    assert first.steps == second.steps


def test_everyone_takes_part_in_every_round_of_a_quiet_swarm() -> None:
    swarm = simulate(5, quiet, last_outer_step=LAST)
    assert all(len(members) == 4 for members in swarm.participation.values())


def test_arithmetic_that_takes_longer_than_silence_may_costs_the_round_nobody() -> None:
    async def slow(swarm: Swarm) -> None:
        swarm.loop.thread_s = lambda: SILENCE_LEAST_S + swarm.rng.random()
        for index in range(4):
            swarm.start(f"p{index}", established=index == 0, phase_s=20.0)
        await swarm.until(lambda: len(swarm.steps.get(5, ())) == 4)
        assert "member_down" not in "\n".join(swarm.story)
        await swarm.finish(900)

    swarm = simulate(0, slow, last_outer_step=6)
    assert [len(members) for members in swarm.participation.values()] == [4] * 6


@pytest.mark.parametrize("later_s", [0.0, 0.5, 1.5])
def test_who_leaves_in_the_middle_of_a_step_leaves_with_all_of_it(later_s: float) -> None:
    async def leaves(swarm: Swarm) -> None:
        swarm.loop.thread_s = lambda: 1.0
        for index in range(3):
            swarm.start(f"p{index}", established=index == 0, phase_s=10.0)
        await swarm.until(lambda: len(swarm.steps.get(2, ())) == 3)
        goes = swarm.peers["p1"]
        before = goes.averager.lineage
        await swarm.until(lambda: goes.averager.machine.pending_commit is not None)
        await asyncio.sleep(later_s)
        goes.task.cancel()
        await asyncio.wait([goes.task])
        assert goes.averager.lineage != before
        await swarm.finish(300)

    swarm = simulate(0, leaves, last_outer_step=4)
    lineages = {lineage for lineage, _ in swarm.steps[3].values()}
    assert sorted(swarm.steps[3]) == ["p0", "p1", "p2"]
    assert swarm.disks["p1"].outer_step == 3
    assert {swarm.disks["p1"].lineage.hex()} == lineages


@pytest.mark.parametrize(("missed", "downloads"), [(3, False), (20, True)])
def test_who_comes_back_to_a_step_not_long_ago_catches_up_and_downloads_no_state(missed: int, downloads: bool) -> None:
    async def returns(swarm: Swarm) -> None:
        for index in range(3):
            swarm.start(f"p{index}", established=index == 0)
        await swarm.until(lambda: len(swarm.steps.get(3, ())) == 3)
        await swarm.crash("p1")
        before = swarm.disks["p1"].outer_step
        await swarm.until(lambda: max(swarm.steps) >= before + missed)
        told = len(swarm.story)
        swarm.start("p1")
        await swarm.until(lambda: len(swarm.participation.get(before + missed + 4, ())) == 3)
        assert any("p1 state_downloaded" in line for line in swarm.story[told:]) == downloads
        await swarm.finish(300)

    simulate(0, returns, last_outer_step=missed + 10)


def test_who_leaves_in_the_middle_of_going_over_to_a_state_has_it() -> None:
    async def leaves(swarm: Swarm) -> None:
        for index in range(2):
            swarm.start(f"p{index}", established=index == 0)
        await swarm.until(lambda: len(swarm.steps.get(2, ())) == 2)
        comes = swarm.start("late")
        swarm.loop.thread_s = lambda: 1.0
        await swarm.until(lambda: any("late state_downloaded" in line for line in swarm.story))
        await asyncio.sleep(0.5)
        assert comes.averager.state().outer_step == 0
        comes.task.cancel()
        await asyncio.wait([comes.task])
        assert comes.averager.established
        assert comes.averager.state().outer_step >= 2
        await swarm.finish(300)

    simulate(0, leaves, last_outer_step=6)


def test_while_a_step_is_taken_no_progress_is_told_that_is_of_the_next() -> None:
    async def looks(swarm: Swarm) -> None:
        one = swarm.start("p0", established=True)
        await swarm.until(lambda: 1 in swarm.steps)
        told = one.averager._status()
        one.trainer.outer_step += 1
        one.trainer.progress += 100
        assert one.averager._status() == told
        one.trainer.outer_step -= 1
        assert one.averager._status().progress == told.progress + 100
        await swarm.finish(100)

    simulate(0, looks, last_outer_step=2)


def test_the_committed_step_is_the_weighted_mean_of_the_contributions() -> None:
    async def one_step(swarm: Swarm) -> None:
        peers = [swarm.start("p0", established=True), *(swarm.start(f"p{index}") for index in range(1, 4))]
        expected_P = torch.zeros(N_ELEMENTS)
        await swarm.finish(60)
        for peer in peers:
            fresh = SimulatedTrainer(peer.peer, swarm.rng, 1.0)
            fresh._done = 1.0
            expected_P += fresh._moved() / 4
        anchor_P = torch.linspace(-1, 1, N_ELEMENTS) - 0.7 * expected_P
        assert torch.allclose(peers[0].trainer.anchor_P, anchor_P, atol=1e-6)

    simulate(3, one_step, last_outer_step=1, codec="float32")


@pytest.mark.parametrize("seed", range(10))
def test_the_leader_of_each_round_is_killed_and_the_round_still_commits(seed: int) -> None:
    async def regicide(swarm: Swarm) -> None:
        swarm.start("p0", established=True)
        for index in range(1, 6):
            swarm.start(f"p{index}")

        async def kill_leaders() -> None:
            for outer_step in (1, 3, 5):
                while True:
                    await asyncio.sleep(0.003)
                    led = [
                        peer.name
                        for peer in swarm.peers.values()
                        if (descriptor := peer.averager.machine.descriptor) is not None
                        and descriptor.outer_step == outer_step
                        and descriptor.leader == peer.peer
                    ]
                    if led:
                        # At another moment of the round under every seed.
                        await asyncio.sleep(swarm.rng.uniform(0.0, 0.05))
                        if led[0] in swarm.peers:
                            await swarm.crash(led[0])
                        break

        killer = asyncio.get_running_loop().create_task(kill_leaders())
        await swarm.finish(300)
        killer.cancel()

    swarm = simulate(seed, regicide, last_outer_step=LAST, quorum=2)
    assert sorted(swarm.steps) == list(range(1, LAST + 1))
    assert len(swarm.peers) <= 5


@pytest.mark.parametrize("seed", range(5))
def test_a_newcomer_has_the_bits_of_the_others_and_takes_part(seed: int) -> None:
    async def late(swarm: Swarm) -> None:
        for index in range(3):
            swarm.start(f"p{index}", established=index == 0)
        await asyncio.sleep(swarm.rng.uniform(5.0, 9.0))
        newcomer = swarm.start("late")
        await swarm.finish(300)
        steps = [step for step, held in swarm.steps.items() if "late" in held]
        took_part = [step for step, members in swarm.participation.items() if newcomer.peer in members]
        assert steps[0] > 2
        assert steps == list(range(steps[0], LAST + 1))
        assert took_part == steps

    simulate(seed, late, last_outer_step=LAST)


@pytest.mark.parametrize("frozen_s", [1.5, 2.9, 6.0, 15.0])
def test_who_stood_still_while_it_waited_hears_the_others_before_it_counts_them_out(frozen_s: float) -> None:
    async def scenario(swarm: Swarm) -> None:
        waits = swarm.start("a", established=True, phase_s=4.0)
        for name in "bc":
            swarm.start(name, phase_s=6.0)
        await swarm.until(lambda: 2 in swarm.steps)
        await swarm.until(lambda: (step := waits.averager.machine._step) is not None and step.own is not None)
        swarm.freeze("a")
        await asyncio.sleep(frozen_s)
        swarm.thaw("a")
        await swarm.finish(300)
        assert all(len(members) > 1 for members in swarm.participation.values()), swarm.participation

    simulate(3, scenario, last_outer_step=LAST, quorum=1)


@pytest.mark.parametrize("scale", [1.1, 1.2, 1.3, 1.4])
def test_a_newcomer_that_draws_other_first_weights_takes_the_members_and_the_run_begins(scale: float) -> None:
    """Of two states without a step neither is further, and the run cannot take one before the newcomer is there."""

    async def begin(swarm: Swarm) -> None:
        swarm.start("p0", established=True)
        swarm.start("other", scale=scale)
        await swarm.finish(60)

    swarm = simulate(1, begin, last_outer_step=LAST, quorum=2)
    assert sorted(swarm.steps) == list(range(1, LAST + 1))


@pytest.mark.parametrize("seed", range(10))
def test_a_connection_that_breaks_for_a_moment_does_not_fork_two_peers(seed: int) -> None:
    async def flaky(swarm: Swarm) -> None:
        one, other = swarm.start("p0", established=True), swarm.start("p1")
        breaking = asyncio.get_running_loop().create_task(break_often(swarm, one.peer, other.peer))
        await swarm.finish(300)
        breaking.cancel()

    async def break_often(swarm: Swarm, one: str, other: str) -> None:
        while True:
            await asyncio.sleep(swarm.rng.expovariate(1.0))
            swarm.network.cut(one, other)

    swarm = simulate(seed, flaky, last_outer_step=LAST, quorum=1)
    assert sorted(swarm.steps) == list(range(1, LAST + 1))


@pytest.mark.parametrize("seed", range(3))
def test_when_a_fork_heals_each_of_the_lighter_side_keeps_the_state_that_it_leaves(seed: int) -> None:
    """Others of that side still know it, and are no witnesses of what the heavier side had."""

    async def fork(swarm: Swarm) -> None:
        for index in range(6):
            swarm.start(f"p{index}", established=index == 0)
        await swarm.until(lambda: len(swarm.steps.get(1, ())) == 6)
        swarm.ledger.forks_allowed = True
        swarm.network.partition([swarm.peers[f"p{index}"].peer for index in range(3)])
        await asyncio.sleep(15)
        swarm.network.heal()
        await swarm.finish(600)

    swarm = simulate(seed, fork, last_outer_step=LAST, quorum=2)
    assert sorted(swarm.kept) in (["p0", "p1", "p2"], ["p3", "p4", "p5"])
    assert all(len(states) == 1 for states in swarm.kept.values())


def test_a_fresh_peer_alone_never_starts_a_run_that_it_was_invited_to() -> None:
    async def alone(swarm: Swarm) -> None:
        fresh = swarm.start("fresh")
        other = swarm.start("other")
        await asyncio.sleep(120)
        assert not fresh.averager.established
        assert not other.averager.established
        assert {status.role for status in fresh.mesh.members().values()} == {Role.JOINING}
        for peer in (fresh, other):
            peer.task.cancel()

    assert simulate(0, alone, last_outer_step=LAST).steps == {}


def test_a_peer_three_times_slower_counts_for_a_third_in_every_step_and_holds_nobody_up() -> None:
    async def mixed(swarm: Swarm) -> None:
        for index in range(3):
            swarm.start(f"p{index}", established=index == 0, phase_s=2.0)
        slow = swarm.start("slow", phase_s=6.0)
        slow.trainer.inner_steps = 50
        began = swarm.loop.time()
        await swarm.finish(300)
        # The first step teaches everyone how long a phase is. A phase of the simulated trainer varies by a quarter.
        later = [swarm.participation[step] for step in range(3, LAST + 1)]
        assert all(slow.peer in members for members in later)
        assert (swarm.loop.time() - began) / LAST < 2.0 * 1.3 + 0.5
        counted = swarm.ledger._counted[slow.averager.lineage][slow.peer]
        assert counted > 0.8 * swarm.ledger.trained[slow.peer]

    simulate(1, mixed, last_outer_step=LAST)


@pytest.mark.parametrize("seed", range(6))
def test_those_who_come_back_to_a_member_that_dies_go_on_without_it(seed: int) -> None:
    """Each has looked for members and has found one: with that one gone nobody is left to wait for."""

    async def scenario(swarm: Swarm) -> None:
        for name in "abc":
            swarm.start(name, established=name == "a")
        await swarm.until(lambda: 3 in swarm.steps)
        await swarm.crash("b")
        await swarm.crash("c")
        await swarm.until(lambda: 6 in swarm.steps)
        # They see a as a member, and it is gone before they have its state.
        back = [swarm.start("b"), swarm.start("c")]
        await swarm.until(lambda: all(peer.mesh.members() for peer in back))
        await swarm.crash("a")
        await swarm.finish(120)

    swarm = simulate(seed, scenario, last_outer_step=10)
    assert {"b", "c"} <= swarm.steps[10].keys()


@pytest.mark.parametrize("seed", range(4))
def test_a_download_from_a_member_that_freezes_is_given_up_and_begun_with_another(seed: int) -> None:
    """A frozen process keeps its streams open for ever: that nothing comes is all that tells."""

    async def scenario(swarm: Swarm) -> None:
        peers = [swarm.start(name, established=name == "a") for name in "abc"]
        await swarm.until(lambda: 2 in swarm.steps)
        newcomer = swarm.start("d")
        swarm.network.bytes_per_s[newcomer.peer] = 40_000
        await swarm.until(lambda: any(peer.averager._joining.serving for peer in peers))
        donor = next(peer for peer in peers if peer.averager._joining.serving)
        swarm.freeze(donor.name)
        await swarm.until(lambda: newcomer.averager.established)
        swarm.network.bytes_per_s.clear()
        swarm.thaw(donor.name)
        await swarm.finish(200)

    swarm = simulate(seed, scenario, last_outer_step=40)
    assert "d" in swarm.steps[40]


def test_a_joiner_on_a_link_that_takes_ten_rounds_for_the_state_gets_in_and_holds_nobody_up() -> None:
    """With fp4: eight bytes a parameter in ten rounds are more than the half byte that each round's results take."""
    n_elements, calm_s = 600_000, 2.5

    async def scenario(swarm: Swarm) -> None:
        for index in range(3):
            swarm.start(f"p{index}", established=index == 0)
        await swarm.until(lambda: 4 in swarm.steps)
        slow = swarm.start("slow")
        swarm.network.bytes_per_s[slow.peer] = 8 * n_elements / (10 * calm_s)
        await swarm.until(lambda: slow.averager.established)
        joined_at = max(swarm.steps)
        await swarm.until(lambda: "slow" in swarm.steps[max(swarm.steps)])
        caught_up_at, began = max(swarm.steps), swarm.loop.time()
        await swarm.finish(300)
        later = range(caught_up_at, swarm.last_outer_step + 1)
        assert joined_at > 12, "its download was to take ten rounds"
        assert caught_up_at < joined_at + 20
        assert all("slow" in swarm.steps[step] for step in later)
        # A phase is 2.6 s at most; now and then the others wait for its share, and learn when that is in vain.
        assert (swarm.loop.time() - began) / len(later) < 1.5 * calm_s

    swarm = simulate(0, scenario, last_outer_step=45, codec="fp4", n_elements=n_elements)
    assert not [line for line in swarm.story if "strike" in line]


def test_a_member_that_never_sends_its_shares_costs_a_deadline_and_is_told_of() -> None:
    async def mute(swarm: Swarm) -> None:
        for index in range(3):
            swarm.start(f"p{index}", established=index == 0)
        silent = swarm.start("silent")

        async def nothing(*args: object) -> None:
            """Says that it is ready, holds its tongue, and takes what the others send."""

        silent.averager._transfers.push = nothing  # type: ignore[method-assign, assignment]
        began = swarm.loop.time()
        await swarm.finish(600)
        strikes = [line for line in swarm.story if "strike" in line and "nothing came of its share" in line]
        assert strikes
        assert all("'member': 'silent'" in line for line in strikes), strikes
        assert all(silent.peer not in swarm.participation[step] for step in range(2, LAST + 1))
        # A phase of up to 2.6 s, and half a phase of waiting for what does not come; the first waits are unlearnt.
        assert swarm.loop.time() - began < 30.0 + LAST * (2.6 + 0.5 * 2.6 + 1.0)

    simulate(0, mute, last_outer_step=LAST, quorum=2)


@pytest.mark.parametrize("seed", range(3))
def test_a_peer_in_whose_state_a_bit_flips_is_told_by_the_commits_of_others_and_fetches_the_right_one(
    seed: int,
) -> None:
    async def scenario(swarm: Swarm) -> None:
        for index in range(4):
            swarm.start(f"p{index}", established=index == 0)
        await swarm.until(lambda: len(swarm.participation.get(3, ())) == 4 or 6 in swarm.steps)
        victim = swarm.peers["p2"]
        swarm.ledger.corrupted.add(victim.peer)
        victim.trainer.anchor_P.view(torch.int32)[seed] ^= 1 << (3 * seed)
        await swarm.until(lambda: victim.peer not in swarm.ledger.corrupted)
        await swarm.finish(200)

    swarm = simulate(seed, scenario, last_outer_step=20)
    assert any("p2" in line and "diverged" in line for line in swarm.story)
    assert not any("strike" in line for line in swarm.story), "nobody is blamed"
    assert len(set(swarm.steps[20].values())) == 1
    assert len(swarm.steps[20]) == 4
