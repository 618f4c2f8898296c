"""bases.Queues: which rows a push overwrites, what the checkpoint holds, dtypes, and what is refused."""

import pytest
import torch

from mixfast.errors import ConfigError
from mixfast.losses import unit
from mixfast.methods.bases import Queues, key_dtype


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_queues_start_with_random_directions_of_their_own() -> None:
    keys = Queues(("a", "b"), 64, 1024, seeded()).keys()
    for queue in keys.values():
        torch.testing.assert_close(queue.norm(dim=1), torch.ones(1024))
        assert queue.mean(dim=0).norm().item() < 0.1
        assert queue.dtype == torch.float32 and not queue.requires_grad
    assert (keys["a"] * keys["b"]).sum(dim=1).abs().mean().item() < 0.2
    again = Queues(("a", "b"), 64, 1024, seeded()).keys()
    assert all(torch.equal(keys[name], again[name]) for name in keys)


def test_a_push_overwrites_the_oldest_rows_of_every_queue_and_wraps(rng: torch.Generator) -> None:
    queues = Queues(("a", "b"), 3, 32, seeded())
    expected = {name: list(keys.clone()) for name, keys in queues.keys().items()}
    for step in range(11):  # wraps after 8 pushes of 4
        rows = {name: unit(torch.randn(4, 3, generator=rng)) for name in ("b", "a")}
        queues.push_(rows)
        for name, wanted in expected.items():
            for i in range(4):
                wanted[(4 * step + i) % 32] = rows[name][i]
            assert torch.equal(queues.keys()[name], torch.stack(wanted))
    assert queues.pointer.item() == 11 * 4 % 32
    assert set(queues.state_dict()) == {"a", "b", "pointer"}


def test_a_saved_state_continues_where_it_was(rng: torch.Generator) -> None:
    rows = [{"a": unit(torch.randn(8, 3, generator=rng))} for _ in range(3)]
    first, second = Queues(("a",), 3, 16, seeded()), Queues(("a",), 3, 16, torch.Generator().manual_seed(1))
    first.push_(rows[0])
    second.load_state_dict(first.state_dict())
    for queues in (first, second):
        queues.push_(rows[1])
        queues.push_(rows[2])
    assert torch.equal(first.keys()["a"], second.keys()["a"])
    assert torch.equal(first.keys()["a"], torch.cat([rows[2]["a"], rows[1]["a"]]))


def test_rows_are_converted_to_the_dtype_of_the_queues(rng: torch.Generator) -> None:
    queues = Queues(("a",), 3, 8, seeded(), dtype=torch.float16)
    rows = unit(torch.randn(4, 3, generator=rng))
    queues.push_({"a": rows})
    assert queues.keys()["a"].dtype == torch.float16
    assert torch.equal(queues.keys()["a"][:4], rows.half())


def test_keys_are_float16_only_under_autocast_on_a_gpu() -> None:
    """Where InfoNCE casts queries to float16; under autocast on a CPU it computes in float32."""
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    assert (key_dtype(cpu), key_dtype(gpu)) == (torch.float32, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert key_dtype(cpu) == torch.float32
        assert Queues(("a",), 3, 8, seeded()).keys()["a"].dtype == torch.float32
    was = torch.is_autocast_enabled("cuda")
    torch.set_autocast_enabled("cuda", True)  # torch.autocast("cuda") turns itself off where there is no GPU
    try:
        assert (key_dtype(cpu), key_dtype(gpu)) == (torch.float32, torch.float16)
    finally:
        torch.set_autocast_enabled("cuda", was)


@pytest.mark.parametrize("rows", [0, 5, 33])
def test_rows_that_do_not_divide_the_size_are_refused(rows: int) -> None:
    with pytest.raises(ConfigError, match=f"multiple of the rows pushed.*the size 32 and {rows} rows for a"):
        Queues(("a",), 3, 32, seeded()).push_({"a": torch.zeros(rows, 3)})


def test_queues_that_would_leave_the_common_pointer_are_refused() -> None:
    queues = Queues(("a", "b"), 3, 32, seeded())
    with pytest.raises(ConfigError, match=r"keys must come for \['a', 'b'\]; got \['a'\]"):
        queues.push_({"a": torch.zeros(4, 3)})
    with pytest.raises(ConfigError, match=r"as many for every queue; got .* 4 rows for a, 8 rows for b"):
        queues.push_({"a": torch.zeros(4, 3), "b": torch.zeros(8, 3)})
    assert queues.pointer.item() == 0
