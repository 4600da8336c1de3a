"""Which samples an epoch has, in which order."""

from hf_simmim.data.sampling import EpochSampler, evenly_spaced


def test_sampler_shows_every_sample_once_in_a_new_order_each_epoch():
    sampler = EpochSampler(50, seed=0)
    orders = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        keys = list(sampler)
        assert sorted(keys) == list(range(epoch * 50, epoch * 50 + 50))
        orders.append([key % 50 for key in keys])
    assert orders[0] != orders[1]
    assert list(EpochSampler(50, seed=1)) != list(EpochSampler(50, seed=0))


def test_evenly_spaced_indices_are_exact_above_what_float32_holds():
    length = 2**25 + 3
    indices = evenly_spaced(length, 5)
    assert indices[0] == 0
    assert indices[-1] == length - 1
    assert max(abs(index - position * (length - 1) / 4) for position, index in enumerate(indices)) <= 0.5
