"""PSNR and SSIM against their formulas written out."""

import math

import pytest
import torch

from baret_ops.metrics import clip_score, psnr, ssim


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(2, 17, 23, 3, generator=generator)
    return a, (a + 0.1 * torch.randn(a.shape, generator=generator)).clamp(0, 1)


def ssim_of_a_window(p, q, weights):
    """Wang et al. 2004, equation 13, of two windows of one channel in 0..1."""
    mean_p, mean_q = (weights * p).sum(), (weights * q).sum()
    variance_p, variance_q = (weights * (p - mean_p) ** 2).sum(), (weights * (q - mean_q) ** 2).sum()
    covariance = (weights * (p - mean_p) * (q - mean_q)).sum()
    luminance = (2 * mean_p * mean_q + 1e-4) / (mean_p**2 + mean_q**2 + 1e-4)
    structure = (2 * covariance + 9e-4) / (variance_p + variance_q + 9e-4)
    return luminance * structure


def ssim_written_out(a, b, where=None):
    """SSIM window by window, the mean over channels, weighted by ``where`` at the windows' middles."""
    offsets = torch.arange(11) - 5
    gauss = torch.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2)).double()
    gauss /= gauss.sum()
    total, weight = 0.0, 0.0
    for y in range(5, a.shape[0] - 5):
        for x in range(5, a.shape[1] - 5):
            p, q = (t[y - 5 : y + 6, x - 5 : x + 6].double().unbind(-1) for t in (a, b))
            channels = [ssim_of_a_window(p_channel, q_channel, gauss) for p_channel, q_channel in zip(p, q)]
            here = 1.0 if where is None else where[y, x]
            total += here * sum(channels) / len(channels)
            weight += here
    return total / weight


def test_psnr(pair):
    a, b = pair
    for one, two, got in zip(a, b, psnr(a, b)):
        assert float(got) == pytest.approx(-10 * math.log10(((one - two) ** 2).mean()), abs=1e-4)
    where = torch.zeros(2, 17, 23)
    where[0, :4], where[1, :, 7:] = 1.0, 0.5
    got = psnr(a, b, where)
    assert float(got[0]) == pytest.approx(-10 * math.log10(((a - b)[0, :4] ** 2).mean()), abs=1e-4)
    assert float(got[1]) == pytest.approx(-10 * math.log10(((a - b)[1, :, 7:] ** 2).mean()), abs=1e-4)
    assert (psnr(a, a) == math.inf).all() and psnr(a, b, 0 * where).isnan().all()


def test_ssim(pair):
    a, b = pair
    where = torch.rand(2, 17, 23)
    for index, (plain, masked) in enumerate(zip(ssim(a, b), ssim(a, b, where))):
        assert float(plain) == pytest.approx(float(ssim_written_out(a[index], b[index])), abs=1e-5)
        assert float(masked) == pytest.approx(float(ssim_written_out(a[index], b[index], where[index])), abs=1e-5)
    torch.testing.assert_close(ssim(a, a), torch.ones(2))
    assert (ssim(a, b) < 0.99).all()


def test_ssim_needs_a_whole_window():
    with pytest.raises(ValueError, match="pictures of 12x10 came.*window of 11x11"):
        ssim(torch.rand(1, 10, 12, 3), torch.rand(1, 10, 12, 3))


def test_clip_score():
    image, text = torch.tensor([[3.0, 4.0], [0.0, -2.0]]), torch.tensor([[0.0, 5.0]])
    assert clip_score(image, text).tolist() == pytest.approx([2.5 * 0.8, 0.0])
