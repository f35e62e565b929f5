import hashlib
import math

import pytest
import torch

from runtime.errors import ConfigError
from runtime.training.model import GPT, PRESETS, build_model, digest, flatten, unflatten_into


def test_toy_has_exactly_136448_parameters() -> None:
    assert flatten(build_model("toy", 0).parameters()).shape == (136_448,)


@pytest.mark.parametrize("preset", PRESETS)
def test_parameters_are_counted_without_being_built(preset: str) -> None:
    # On "meta" nothing takes memory, whatever its size.
    with torch.device("meta"):
        model = GPT(PRESETS[preset])
    assert PRESETS[preset].n_parameters == sum(parameter.numel() for parameter in model.parameters())


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    digests = [digest(flatten(build_model("toy", seed).parameters())) for seed in (7, 7, 8)]
    assert digests[0] == digests[1] != digests[2]


def test_building_a_model_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    build_model("toy", 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="toy, small, medium, large, xl"):
        build_model("gigantic", 0)


def test_fresh_weights_know_nothing() -> None:
    model = build_model("toy", 0)
    tokens_BT = torch.randint(0, 256, (8, 64), generator=torch.Generator().manual_seed(0))
    assert model(tokens_BT, tokens_BT.roll(-1, 1)).item() == pytest.approx(math.log(256), abs=0.1)


def test_the_loss_is_the_cross_entropy_of_the_logits() -> None:
    model = build_model("toy", 0)
    tokens_BT = torch.randint(0, 256, (2, 16), generator=torch.Generator().manual_seed(0))
    targets_BT = tokens_BT.roll(-1, 1)
    by_hand = -model(tokens_BT).log_softmax(-1).gather(-1, targets_BT[..., None]).mean()
    assert model(tokens_BT, targets_BT).item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_no_byte_sees_a_later_one() -> None:
    model = build_model("toy", 0)
    tokens_BT = torch.randint(0, 255, (1, 64), generator=torch.Generator().manual_seed(0))
    changed_BT = tokens_BT.clone()
    changed_BT[0, 40:] += 1
    before, after = model(tokens_BT), model(changed_BT)
    assert torch.allclose(before[0, :40], after[0, :40], atol=1e-6)
    assert not torch.allclose(before[0, 40:], after[0, 40:], atol=1e-6)


def test_unflatten_is_the_inverse_of_flatten() -> None:
    source, target = build_model("toy", 1), build_model("toy", 2)
    unflatten_into(target.parameters(), flatten(source.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


def test_a_flat_vector_of_the_wrong_length_changes_nothing() -> None:
    model = build_model("toy", 1)
    before = digest(flatten(model.parameters()))
    with pytest.raises(ValueError, match="136448 elements"):
        unflatten_into(model.parameters(), torch.zeros(5))
    assert digest(flatten(model.parameters())) == before


def test_a_digest_is_sha256_of_the_little_endian_float32_bytes_one_tensor_after_the_other() -> None:
    expected = hashlib.sha256(bytes.fromhex("0000803f 000000c0")).digest()
    assert digest(torch.tensor([1.0]), torch.tensor([-2.0])) == digest(torch.tensor([1.0, -2.0])) == expected


@pytest.mark.parametrize("preset", PRESETS)
def test_heads_divide_the_width(preset: str) -> None:
    assert PRESETS[preset].width % PRESETS[preset].heads == 0
