"""Quantisers against their formulas: gradients, closed forms, moving averages, dead codes."""

import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robostack.core.quantize import FSQ, NSVQ, VQ, Quantizer, Usage, nearest

F64 = torch.float64
LEVELS = st.lists(st.integers(3, 9), min_size=1, max_size=4)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clusters(centers: int, rows: int, width: int = 4, seed: int = 0) -> Tensor:
    """Points closely around a few far-apart centers."""
    generator = seeded(seed)
    places = 10.0 * torch.randn(centers, width, generator=seeded(99))
    return places[torch.arange(rows) % centers] + 0.01 * torch.randn(rows, width, generator=generator)


def quantizers() -> list[Quantizer]:
    torch.manual_seed(0)
    return [FSQ([5, 4, 3]), VQ(16, 3), NSVQ(16, 3)]


@pytest.mark.parametrize("quantizer", quantizers(), ids=lambda q: type(q).__name__)
@pytest.mark.parametrize("batch", [(), (7,), (2, 5)])
def test_all_quantizers_answer_alike(quantizer: Quantizer, batch: tuple[int, ...]) -> None:
    """In evaluation the codes are decode(encode(z)) to the bit, z gets a gradient, and nothing is drawn or learnt."""
    quantizer.eval()
    z = torch.randn(*batch, 3, generator=seeded(), requires_grad=True)
    generator, before = seeded(), {key: value.clone() for key, value in quantizer.state_dict().items()}
    out = quantizer(z, generator)
    assert out.indices.shape == batch and out.indices.dtype == torch.int64
    assert int(out.indices.min()) >= 0 and int(out.indices.max()) < quantizer.size
    assert torch.equal(out.indices, quantizer.encode(z))
    assert torch.equal(out.codes, quantizer.decode(out.indices))
    out.codes.sum().backward()
    assert z.grad is not None and bool((z.grad > 0).all())
    assert torch.equal(generator.get_state(), seeded().get_state())
    assert all(torch.equal(value, before[key]) for key, value in quantizer.state_dict().items())


@pytest.mark.parametrize("quantizer", quantizers(), ids=lambda q: type(q).__name__)
def test_training_is_a_function_of_the_generator(quantizer: Quantizer) -> None:
    state = {key: value.clone() for key, value in quantizer.state_dict().items()}
    z, results = torch.randn(8, 3, generator=seeded()), []
    for seed in (3, 3, 4):
        quantizer.load_state_dict(state)
        quantizer.train()(z, generator := seeded(seed))
        results.append(torch.cat([quantizer(z, generator).codes, quantizer.decode(torch.arange(16))]).detach())
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2]) == isinstance(quantizer, FSQ)


@settings(deadline=None, max_examples=40)
@given(LEVELS)
def test_fsq_indices_and_codes_are_a_bijection(levels: Sequence[int]) -> None:
    fsq = FSQ(levels)
    indices = torch.arange(fsq.size)
    codes = fsq.decode(indices)
    assert fsq.size == math.prod(levels) and len(torch.unique(codes, dim=0)) == fsq.size
    assert float(codes.abs().max()) <= 1.0
    for entry, level in zip(codes.T, levels, strict=True):
        expected = (torch.arange(level) - level // 2) / (level // 2)
        assert torch.equal(entry.unique(), expected)
    # Every code is reached: by the z that its bound maps onto it, or by any z beyond at the ends.
    half, offset = (torch.tensor(levels) - 1) * 0.4995, (torch.tensor(levels) % 2 == 0) * 0.5
    ratio = (codes * (torch.tensor(levels) // 2) + offset) / half
    z = torch.atanh(ratio.clamp(-1 + 1e-7, 1 - 1e-7)) - torch.atanh(offset / half)
    assert torch.equal(fsq.encode(z), indices)


@settings(deadline=None, max_examples=40)
@given(LEVELS, st.floats(-1e6, 1e6))
def test_fsq_is_bounded_and_keeps_zero(levels: Sequence[int], scale: float) -> None:
    fsq = FSQ(levels).eval()
    z = scale * torch.randn(50, len(levels), generator=seeded())
    out = fsq(z, seeded())
    assert float(out.codes.abs().max()) <= 1.0 and int(out.indices.min()) >= 0 and int(out.indices.max()) < fsq.size
    assert not fsq(torch.zeros(1, len(levels)), seeded()).codes.any()


def test_fsq_gradient_is_that_of_the_bound() -> None:
    """d/dz ((L − 1)/2 (1 − 10⁻³) tanh(z + s) − o) / ⌊L/2⌋, as if nothing had been rounded."""
    z = torch.randn(20, 2, generator=seeded(), dtype=F64, requires_grad=True)
    FSQ([8, 5])(z, seeded()).codes.sum().backward()
    half = torch.tensor([3.5, 2.0], dtype=F64) * 0.999
    shift = torch.atanh(torch.tensor([0.5, 0.0], dtype=F64) / half)
    expected = half * (1.0 - torch.tanh(z.detach() + shift) ** 2) / torch.tensor([4.0, 2.0], dtype=F64)
    assert z.grad is not None
    torch.testing.assert_close(z.grad, expected)


def test_fsq_keeps_its_codes_in_bfloat16() -> None:
    """999 levels are more than bfloat16 can tell apart: the index is made in float32."""
    fsq = FSQ([999]).eval()
    z = torch.tensor([[-50.0], [50.0], [0.0]], dtype=torch.bfloat16)
    out = fsq(z, seeded())
    assert out.indices.tolist() == [0, 998, 499] and out.codes.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FSQ([]), "at least one"),
        (lambda: FSQ([8, 2]), "3..1000"),
        (lambda: FSQ([1001]), "3..1000"),
        (lambda: FSQ([1000] * 7), "int64"),
        (lambda: VQ(1, 3), "at least 2 codes"),
        (lambda: NSVQ(8, 3, decay=1.0), "between 0 and 1"),
        (lambda: VQ(8, 3, dead_below=0.0), "between 0 and 1"),
    ],
)
def test_what_cannot_work_is_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_nearest_is_the_nearest() -> None:
    z, codes = torch.randn(6, 9, 5, generator=seeded()), torch.randn(30, 5, generator=seeded(1))
    distances = (z[..., None, :].double() - codes.double()).norm(dim=-1)
    assert torch.equal(nearest(z, codes), distances.argmin(-1))


def test_vq_passes_the_gradient_straight_through_and_commits_the_encoder() -> None:
    vq = VQ(8, 3, commitment=0.5)
    z = torch.randn(10, 3, generator=seeded(), requires_grad=True)
    weights, codes = torch.randn(10, 3, generator=seeded(1)), vq.decode(vq.encode(z))
    out = vq(z, seeded())
    torch.testing.assert_close(out.loss, 0.5 * (z - codes).square().mean())
    ((out.codes * weights).sum() + out.loss).backward()
    assert z.grad is not None
    torch.testing.assert_close(z.grad, weights + 0.5 * 2.0 * (z.detach() - codes) / z.numel())
    assert vq.codes.grad is None and not vq.codes.requires_grad


def test_vq_codes_are_moving_averages_of_their_vectors() -> None:
    """Ten steps against m ← γm + (1 − γ)Σz, N ← γN + (1 − γ)n, e = m / N, written with loops."""
    vq = VQ(4, 4, decay=0.9)
    vq.codes.copy_(clusters(4, 4, seed=1))
    sums, counts = [torch.zeros(4, dtype=F64) for _ in range(4)], [0.0] * 4
    for step in range(10):
        z = clusters(4, 20, seed=step)[torch.randperm(20, generator=seeded(step))[:15]]
        chosen = vq.encode(z).tolist()
        assert set(chosen) == {0, 1, 2, 3}  # no code dies here
        vq(z, seeded())
        for i in range(4):
            rows = [row.double() for row, index in zip(z, chosen, strict=True) if index == i]
            sums[i] = 0.9 * sums[i] + 0.1 * sum(rows, torch.zeros(4, dtype=F64))
            counts[i] = 0.9 * counts[i] + 0.1 * len(rows)
        torch.testing.assert_close(vq.counts.double(), torch.tensor(counts, dtype=F64))
        expected = torch.stack([m / n for m, n in zip(sums, counts, strict=True)])
        torch.testing.assert_close(vq.codes.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [VQ, NSVQ])
def test_the_first_batch_places_the_codes_that_it_does_not_use(kind: type[VQ] | type[NSVQ]) -> None:
    """Data far from the initial codes: one or two are nearest to all, the others move to different vectors of it."""
    torch.manual_seed(0)
    quantizer, z = kind(16, 4), 100.0 + clusters(16, 64)
    before = Usage.of(quantizer.encode(z), 16)
    quantizer(z, seeded())
    after = Usage.of(quantizer.encode(z), 16)
    assert before.share <= 2 / 16 and after.share >= 10 / 16 and after.perplexity > 4 * before.perplexity


@pytest.mark.parametrize("kind", [VQ, NSVQ])
def test_codes_that_the_data_has_left_come_back(kind: type[VQ] | type[NSVQ]) -> None:
    torch.manual_seed(0)
    quantizer, generator = kind(8, 4, decay=0.9), seeded()

    def data(step: int, center: float) -> Tensor:
        return center + torch.randn(64, 4, generator=seeded(step))

    for step in range(20):
        quantizer(data(step, 0.0), generator)
    assert Usage.of(quantizer.encode(data(50, 0.0)), 8).share >= 7 / 8
    assert Usage.of(quantizer.encode(data(50, 500.0)), 8).share <= 2 / 8
    for step in range(100):
        quantizer(data(step, 500.0), generator)
    assert Usage.of(quantizer.encode(data(50, 500.0)), 8).share >= 7 / 8
    assert bool(((quantizer.codes.detach() - 500.0).abs() < 5.0).all())


def test_a_code_in_use_is_left_where_it_is() -> None:
    quantizer = NSVQ(4, 4)
    with torch.no_grad():
        quantizer.codes.copy_(clusters(4, 4, seed=1))
    before = quantizer.codes.detach().clone()
    for step in range(30):
        quantizer(clusters(4, 16, seed=step), seeded(step))
    assert torch.equal(quantizer.codes.detach(), before)


def test_a_batch_smaller_than_the_codebook_still_revives() -> None:
    quantizer = VQ(16, 3)
    z = torch.randn(2, 3, generator=seeded())
    quantizer(z, seeded())
    assert bool(torch.isfinite(quantizer.codes).all())
    torch.testing.assert_close(quantizer.decode(quantizer.encode(z)), z)


def test_nsvq_noise_is_as_large_as_the_error() -> None:
    nsvq = NSVQ(8, 5)
    z = torch.randn(4, 25, 5, generator=seeded())
    codes = nsvq.decode(nsvq.encode(z)).detach()
    out = nsvq(z, seeded()).codes - z
    torch.testing.assert_close(out.norm(dim=-1), (codes - z).norm(dim=-1))
    directions = F.normalize(out, dim=-1).flatten(0, 1)
    assert float(directions.mean(0).norm().detach()) < 0.3  # they point anywhere, not to the code
    assert not float(nsvq(z, seeded()).loss)


def test_nsvq_gradient_reaches_vector_and_codebook() -> None:
    """z + ‖z − e‖ u with u fixed: for the loss w·(…), dz = w + (w·u) d and de = −(w·u) d, with d = (z − e)/‖z − e‖."""
    nsvq = NSVQ(6, 3)
    z = torch.randn(1, 3, generator=seeded(), requires_grad=True)
    index, weights = int(nsvq.encode(z)), torch.tensor([[1.0, -2.0, 0.5]])
    error = (z - nsvq.codes[index]).detach()
    out = nsvq(z, seeded(7)).codes
    noise = (out - z).detach() / error.norm()
    (out * weights).sum().backward()
    along, direction = (weights * noise).sum(), error / error.norm()
    expected = torch.zeros(6, 3)
    expected[index] = -along * direction
    assert z.grad is not None and nsvq.codes.grad is not None
    torch.testing.assert_close(z.grad, weights + along * direction)
    torch.testing.assert_close(nsvq.codes.grad, expected)


def test_nsvq_learns_its_codebook_without_another_loss() -> None:
    """The mean distance to the codes falls to that of the clusters' own spread by the gradient of ‖ẑ − z‖² alone."""
    nsvq = NSVQ(4, 4, dead_below=1e-6)
    with torch.no_grad():
        nsvq.codes.copy_(clusters(4, 4, seed=1) + 1.5)
    optimizer, generator = torch.optim.Adam([nsvq.codes], 0.05), seeded()
    for step in range(100):
        z = clusters(4, 32, seed=step)
        (nsvq(z, generator).codes - z).square().sum(-1).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    z = clusters(4, 32)
    assert float((nsvq.decode(nsvq.encode(z)) - z).detach().norm(dim=-1).mean()) < 0.1


def test_usage_counts_codes_and_their_evenness() -> None:
    even, one = Usage.of(torch.arange(8).repeat(3), 16), Usage.of(torch.full((9,), 5), 16)
    assert even.share == 0.5 and even.perplexity == pytest.approx(8.0)
    assert one.share == 1 / 16 and one.perplexity == pytest.approx(1.0)
    # Shares ½, ¼, ¼ have entropy 1.5 ln 2.
    assert Usage.of(torch.tensor([[0, 0], [1, 3]]), 4).perplexity == pytest.approx(2**1.5)
