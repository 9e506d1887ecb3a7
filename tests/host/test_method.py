"""method.md's "What must hold whatever the weights", through the nodes, on random small UNets of the host."""

import pytest
import torch

STEPS = 6
CFG = 3.0


def close(a, b, relative=1e-5):
    torch.testing.assert_close(a, b, rtol=relative, atol=relative * float(b.abs().max()))


@pytest.fixture
def invert(ttis, model):
    def call(**inputs):
        given = {"model": model, "steps": STEPS, "cfg": CFG, "learning_rate": 0.05, "iterations": 2}
        return ttis(**{**given, **inputs})

    return call


@pytest.fixture
def edit(bam, model):
    def call(trajectory, embeddings, model=model, **inputs):
        return bam(model, trajectory, embeddings, cfg=CFG, **inputs)

    return call


@pytest.fixture
def plain_sampling(stock_euler, text):
    """Guided euler sampling from the inverted noise with the host's own sampler, in VP form, unscaled."""

    def call(model, trajectory):
        schedule = trajectory.schedule
        noisy = trajectory.pivots[0] * schedule.scale(0) / trajectory.family.latent_scale
        out = stock_euler(model, CFG, schedule.sigmas.float(), text(1), text(2), noisy)
        return out / schedule.scale(schedule.steps)

    return call


def test_without_updates_ttis_is_plain_guided_sampling(invert, plain_sampling, model):
    trajectory, embeddings, reconstruction = invert(iterations=0)
    assert torch.equal(embeddings.tuned, embeddings.target.expand_as(embeddings.tuned))
    assert embeddings.updates.sum() == 0
    close(reconstruction["samples"], plain_sampling(model, trajectory))


def test_without_sharing_the_edit_is_plain_guided_sampling(invert, edit, plain_sampling, model):
    trajectory, embeddings, _ = invert()
    close(edit(trajectory, embeddings, tau_sa=0.0, tau_ca=0.0), plain_sampling(model, trajectory))


def test_eta_one_is_the_tuned_embedding_to_the_bit(invert, execute):
    _, embeddings, _ = invert()
    (rigid,) = execute("BaretTransitionEmbedding", embeddings=embeddings, eta_start=1.0, eta_end=1.0)
    for i in range(STEPS):
        assert torch.equal(rigid.transition(i), embeddings.tuned[i])


@pytest.mark.parametrize("passes", ["conditional", "both"])
@pytest.mark.parametrize("taus", [(0.3, 0.6), (1.0, 1.0), (0.6, 0.3)])
def test_untuned_processes_coincide_for_every_tau(invert, edit, execute, taus, passes):
    trajectory, embeddings, reconstruction = invert(iterations=0)
    (moving,) = execute("BaretTransitionEmbedding", embeddings=embeddings)
    for each in (embeddings, moving):
        close(edit(trajectory, each, tau_sa=taus[0], tau_ca=taus[1], passes=passes), reconstruction["samples"])


def test_a_repeated_image_gives_the_single_run_in_each_row(invert, edit, execute, picture):
    alone = invert()
    latent = picture()["samples"].repeat(3, 1, 1, 1)
    together = invert(latent={"samples": latent})
    edits = []
    for trajectory, embeddings, _ in (alone, together):
        (moving,) = execute("BaretTransitionEmbedding", embeddings=embeddings)
        edits.append(edit(trajectory, moving))
    for row in range(3):
        close(together[0].latents[:, row], alone[0].latents[:, 0], 1e-4)
        close(together[1].losses[:, row], alone[1].losses[:, 0], 1e-3)
        close(edits[1][row], edits[0][0], 1e-3)


def test_an_image_does_not_depend_on_its_batch(invert, picture, text):
    """Two pictures with texts of their own and a threshold that one meets sooner."""
    latent = picture(images=2)["samples"]
    texts = text(1) + text(7)
    _, untuned, _ = invert(latent={"samples": latent}, positive=texts, iterations=0)
    rule = {"iterations": 4, "stop_threshold": float(untuned.losses[2].mean()), "stop_growth": 0.0}
    together = invert(latent={"samples": latent}, positive=texts, **rule)
    for row in range(2):
        alone = invert(latent={"samples": latent[row : row + 1]}, positive=[texts[row]], **rule)
        assert torch.equal(together[1].updates[:, row], alone[1].updates[:, 0])
        close(together[0].latents[:, row], alone[0].latents[:, 0], 1e-3)
    first, second = together[1].updates.unbind(1)
    assert (first != second).any(), "the pictures should stop at different times for this test to mean anything"


def test_cond_and_uncond_together_or_apart(invert, edit, execute, run_passes_apart):
    """A host short of memory runs them apart."""
    trajectory, embeddings, _ = invert()
    (moving,) = execute("BaretTransitionEmbedding", embeddings=embeddings)
    together = edit(trajectory, moving)
    run_passes_apart()
    close(edit(trajectory, moving), together)


def test_enough_tuning_reaches_the_picture(invert, picture):
    losses = []
    for iterations in (0, 5, 80):
        trajectory, _, reconstruction = invert(
            iterations=iterations, learning_rate=0.03, stop_threshold=0.0, stop_growth=0.0, cfg=1.5
        )
        losses.append(float((reconstruction["samples"] - picture()["samples"]).square().mean()))
        assert torch.equal(trajectory.pivots[-1], picture()["samples"] * 0.18215)
    assert losses[2] < 0.05 * losses[0] and losses[2] < 0.3 * losses[1] < losses[0], losses


def test_v_prediction_and_odd_sizes(invert, edit, plain_sampling, make_model, picture):
    """SD2-like: v prediction and linear projections, at a latent size that no level divides."""
    model = make_model(v_prediction=True, use_linear_in_transformer=True)
    latent = picture(height=7, width=9)
    trajectory, embeddings, reconstruction = invert(model=model, latent=latent, iterations=0)
    close(reconstruction["samples"], plain_sampling(model, trajectory), 1e-4)
    close(edit(trajectory, embeddings, model=model), reconstruction["samples"], 1e-4)


def test_texts_of_several_windows_and_of_different_lengths(invert, edit, execute, text):
    trajectory, embeddings, reconstruction = invert(positive=text(1, tokens=12), iterations=1)
    assert embeddings.tuned.shape[2] == 12
    (other,) = execute("BaretTransitionEmbedding", embeddings=embeddings, positive=text(9, tokens=8))
    assert torch.isfinite(edit(trajectory, other)).all()
    # A text repeated is the same text to attention.
    (once,) = execute("BaretTransitionEmbedding", embeddings=embeddings, positive=text(9, tokens=6))
    twice = [[text(9, tokens=6)[0][0].repeat(1, 2, 1), {}]]
    (repeated,) = execute("BaretTransitionEmbedding", embeddings=embeddings, positive=twice)
    close(edit(trajectory, once), edit(trajectory, repeated))


def test_mask_keeps_the_pivots_outside(invert, edit, execute, picture):
    trajectory, embeddings, _ = invert()
    (moving,) = execute("BaretTransitionEmbedding", embeddings=embeddings)
    mask = torch.zeros(1, 64, 96)
    mask[:, :, 48:] = 1.0
    masked = edit(trajectory, moving, mask=mask)
    latent = picture()["samples"]
    close(masked[..., :5], latent[..., :5], 1e-6)
    assert (masked[..., 7:] - latent[..., 7:]).abs().mean() > 0.05
    close(edit(trajectory, moving, mask=torch.ones(1, 64, 96)), edit(trajectory, moving), 1e-6)


def test_a_rigid_transition_is_the_reconstruction_itself(invert, edit, execute, pack, monkeypatch):
    """The cheap way (the transition is not sampled again at eta 1) gives what the full way gives."""
    trajectory, embeddings, _ = invert()
    cheap = edit(trajectory, embeddings, passes="both")
    values = pack.modules["baret_ops.values"]
    monkeypatch.setattr(values.Embeddings, "is_rigid", property(lambda self: False))
    close(edit(trajectory, embeddings, passes="both"), cheap, 1e-4)
