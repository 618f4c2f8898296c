"""Named generators: streams by purpose, and those that draw by counter."""

import torch

from mixfast.rng import Generators


def test_purposes_and_seeds_have_streams_of_their_own() -> None:
    """Whatever is used first."""
    one, other = Generators(3), Generators(3)
    first = torch.rand(4, generator=one["mix"])
    torch.rand(4, generator=other["order"])
    assert torch.equal(first, torch.rand(4, generator=other["mix"]))
    assert not torch.equal(first, torch.rand(4, generator=Generators(4)["mix"]))


def test_counters_have_keys_of_their_own() -> None:
    one, other = Generators(3), Generators(3)
    assert torch.equal(one.counter("augment"), other.counter("augment"))
    keys = [one.counter("augment"), one.counter("mix"), Generators(4).counter("augment")]
    assert len({int(state[0]) for state in keys}) == 3 and all(state[1] == 0 for state in keys)


def test_saved_streams_go_on_and_counters_stay_the_same_tensors() -> None:
    one, other = Generators(3), Generators(3)
    state = other.counter("augment")
    one.counter("augment")[1] += 5
    torch.rand(4, generator=one["mix"])
    saved = one.state_dict()
    one.counter("augment")[1] += 1  # what is saved is a copy
    other.load_state_dict(saved)
    assert other.counter("augment") is state and state[1] == 5 and state[0] == one.counter("augment")[0]
    assert not torch.equal(torch.rand(4, generator=other["mix"]), torch.rand(4, generator=Generators(3)["mix"]))
