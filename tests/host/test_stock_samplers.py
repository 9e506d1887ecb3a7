"""Embeddings to Sampler: stock nodes sample our processes themselves and agree with ours."""

from types import SimpleNamespace

import pytest
import torch

STEPS, CFG = 6, 3.0


def close(a, b, relative):
    torch.testing.assert_close(a, b, rtol=relative, atol=relative * float(b.abs().max()))


@pytest.fixture
def inversion(execute, ttis, model):
    def call(**inputs):
        given = {"steps": STEPS, "cfg": CFG, "learning_rate": 0.05, "iterations": 2}
        trajectory, embeddings, _ = ttis(model, **{**given, **inputs})
        (moving,) = execute("BaretTransitionEmbedding", embeddings=embeddings)
        return trajectory, moving

    return call


@pytest.fixture
def processes(pack, bam, model):
    """Our own sampling of each process: the trajectory's latents, or an edit without sharing of the process's text."""

    def transition(trajectory, embeddings):
        """What TTIS samples without updates when its text changes by step."""
        ttis, step_rules = (pack.modules[f"baret_ops.inversions.{name}"] for name in ("tuning", "step_rules"))
        steps = iter(range(trajectory.schedule.steps))

        def no_search(task, embedding, memory):
            e = embeddings.transition(next(steps))
            r = task.residual(e, list(range(len(e))), gradient=False)
            return step_rules.Found(e, r, task.losses(r), torch.zeros(len(e), dtype=torch.int64))

        def loop(predict, device):
            texts = embeddings.target, embeddings.negative
            return ttis.ttis(
                predict, trajectory.pivots, *texts, trajectory.schedule, guidance_scale=CFG, rule=no_search
            )

        with torch.inference_mode():
            tuning = pack.modules["host.run"].sample(
                model,
                loop,
                positive=(embeddings.target, {}),
                negative=(embeddings.negative, {}),
                rows=1,
                shape=trajectory.pivots.shape[2:],
                schedule=trajectory.schedule,
            )
        return tuning.latents[-1] / trajectory.family.latent_scale

    def call(trajectory, embeddings, process):
        if process == "reconstruction":
            return trajectory.latents[-1] / trajectory.family.latent_scale
        if process == "target":
            return bam(model, trajectory, embeddings, tau_sa=0.0, tau_ca=0.0, cfg=CFG)
        return transition(trajectory, embeddings)

    return call


@pytest.mark.parametrize("process", ["reconstruction", "transition", "target"])
@pytest.mark.parametrize("images", [1, 2])
def test_sampler_custom_advanced_agrees(inversion, processes, execute, model, picture, process, images):
    from comfy_extras.nodes_custom_sampler import CFGGuider, DisableNoise, KSamplerSelect, SamplerCustomAdvanced

    trajectory, embeddings = inversion(latent=picture(images=images))
    positive, negative, sigmas, latent = execute(
        "BaretToSampler", embeddings=embeddings, trajectory=trajectory, process=process
    )
    assert len(positive) == STEPS and len(sigmas) == STEPS + 1
    with torch.inference_mode():
        (guider,) = CFGGuider.execute(model, positive, negative, CFG).args
        (noise,) = DisableNoise.execute().args
        (sampler,) = KSamplerSelect.execute("euler").args
        out, _ = SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent).args
    # Samplers end in x-form, ours in VP form: at the last level they differ by sqrt(1 + sigma**2), 0.04 %.
    close(out["samples"] / trajectory.schedule.scale(STEPS), processes(trajectory, embeddings, process), 1e-4)
    close(out["samples"], processes(trajectory, embeddings, process), 1e-3)


def test_each_step_has_its_own_entry_at_any_count(pack):
    """At every step exactly one entry is active, by the host's own test, with the step's own text."""
    import comfy.model_sampling
    import comfy.samplers

    sampling = comfy.model_sampling.ModelSamplingDiscrete()
    x = torch.zeros(1, 4, 2, 2)
    for steps in (2, 7, 50, 143, 999):
        schedule = pack.modules["baret_ops.schedule"].make_schedule(sampling.sigmas, steps)
        texts = [torch.full((1, 1, 1), float(i)) for i in range(steps)]
        entries = pack.modules["host.conditioning"].per_step(texts, {}, schedule)
        conds = [{"cross_attn": text, "model_conds": {}, "uuid": None, **options} for text, options in entries]
        comfy.samplers.calculate_start_end_timesteps(SimpleNamespace(model_sampling=sampling), conds)

        for i in range(steps):
            sigma = schedule.sigmas[i].float().reshape(1)
            active = [cond for cond in conds if comfy.samplers.get_area_and_mult(cond, x, sigma) is not None]
            assert [float(cond["cross_attn"]) for cond in active] == [float(i)]


def test_every_scheduler_meets_an_entry_at_each_of_its_steps(inversion, execute, model, host):
    """KSamplerAdvanced has schedules of its own: whatever their levels, the text of the step beside is there."""
    import comfy.samplers

    trajectory, embeddings = inversion()
    positive, negative, _, latent = execute(
        "BaretToSampler", embeddings=embeddings, trajectory=trajectory, process="reconstruction"
    )
    conds = [{"cross_attn": text, "model_conds": {}, "uuid": None, **options} for text, options in positive]
    sampling = model.get_model_object("model_sampling")
    comfy.samplers.calculate_start_end_timesteps(SimpleNamespace(model_sampling=sampling), conds)
    ours = trajectory.schedule.sigmas[:STEPS].float()
    for scheduler in comfy.samplers.SCHEDULER_NAMES:
        for sigma in comfy.samplers.calculate_sigmas(sampling, scheduler, 9)[:-1]:
            x = torch.zeros(1, 4, 2, 2)
            met = [n for n, cond in enumerate(conds) if comfy.samplers.get_area_and_mult(cond, x, sigma.reshape(1))]
            beside = int((ours > sigma).sum())  # the first of our steps that is no noisier
            assert len(met) == 1 and met[0] in (beside - 1, beside), (scheduler, float(sigma))
        with torch.inference_mode():
            (out,) = host.nodes.KSamplerAdvanced().sample(
                model, "disable", 0, 9, CFG, "euler", scheduler, positive, negative, latent, 0, 9, "disable"
            )
        assert torch.isfinite(out["samples"]).all()


@pytest.mark.parametrize("process", ["reconstruction", "transition"])
def test_what_direct_inversion_adds_back_no_stock_sampler_can(execute, model, text, picture, process):
    """Without it both drift away from the picture, so both are refused; a transition away from the source is not."""
    inputs = {"positive": text(1), "negative": text(2), "latent": picture(), "steps": STEPS, "cfg": CFG}
    trajectory, embeddings, _ = execute("BaretInversion", model=model, method="direct", **inputs)
    sentence = "Embeddings to Sampler: the trajectory is of direct inversion, which adds back .* choose process target"
    with pytest.raises(ValueError, match=sentence):
        execute("BaretToSampler", embeddings=embeddings, trajectory=trajectory, process=process)
    (moving,) = execute("BaretTransitionEmbedding", embeddings=embeddings, positive=text(3))
    execute("BaretToSampler", embeddings=moving, trajectory=trajectory, process="transition")
    execute("BaretToSampler", embeddings=embeddings, trajectory=trajectory, process="target")


def test_ksampler_advanced_agrees_at_fifty_steps(inversion, processes, execute, model, host):
    """ddim_uniform has our times at 50 steps but ends at sigma 0: the last step differs, by little."""
    trajectory, embeddings = inversion(steps=50, iterations=1)
    positive, negative, _, latent = execute(
        "BaretToSampler", embeddings=embeddings, trajectory=trajectory, process="reconstruction"
    )
    with torch.inference_mode():
        (out,) = host.nodes.KSamplerAdvanced().sample(
            model, "disable", 0, 50, CFG, "euler", "ddim_uniform", positive, negative, latent, 0, 50, "disable"
        )
    ours = processes(trajectory, embeddings, "reconstruction")
    assert float((out["samples"] - ours).norm() / ours.norm()) < 0.02
