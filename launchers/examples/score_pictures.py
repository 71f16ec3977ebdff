# %% [markdown]
# Score your pictures with a latent reward model
#
# A latent reward model (LRM, arXiv:2502.01051) scores noisy latents at any timestep t. A picture is encoded by the
# model's autoencoder; t near 0 scores the picture itself. The embedded model is used here; for your own pictures take
# `lpo.reward("lrm", model="sd15", weights="casiatao/LRM::lrm_sd15")`.

# %%
import torch

import lpo_platform as lpo

model = lpo.load("tiny", "hardware=cpu")
score = lpo.reward("lrm", model="tiny")

# %% Two pictures of the prompt and two of another one
prompt = "a red circle left of a blue square"
others = "a person with a green shirt, arms up"
pictures = model.sample([prompt, prompt, others, others], seed=1)  # (4, 3, 64, 64) in [0, 1]

# %%
scores = score(model.encode(pictures), torch.ones(len(pictures), dtype=torch.long), [prompt] * len(pictures))
for number, value in enumerate(scores.tolist()):
    print(f"picture {number}: {value:+.3f}")
