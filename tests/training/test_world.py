"""Who trains together knows who it is, and when it is together no more."""

import pytest
import torch.distributed as dist

from shifter.errors import StoppedError
from shifter.training import world


def test_a_worker_whose_group_is_gone_does_not_go_on_as_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(world, "_had_others", False)
    assert (world.size(), world.rank(), world.total(2)) == (1, 0, [2.0])
    dist.init_process_group("gloo", f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        assert (world.size(), world.rank(), world.total(2)) == (1, 0, [2.0])
    finally:
        dist.destroy_process_group()
    for ask in (world.size, world.rank, lambda: world.total(2)):
        with pytest.raises(StoppedError, match="parted"):
            ask()
