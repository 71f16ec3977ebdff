# %% [markdown]
# A step of CPO by hand
#
# CPO (arXiv:2511.04753) compares two conditions of one picture: the winning one belongs to it, the losing one is what a
# detector finds in a picture that was drawn from the winning one.

# %%
import torch

import lpo_platform as lpo
from lpo_platform.models.adapter import Condition

canny = lpo.task("canny", resolution=64)
model = lpo.load("tiny", "control=controlnet", "task=canny", "hardware=cpu")
policy, process = model.policy, model.policy.adapter.process
scenes = lpo.dataset("toy", num_train=4, resolution=64).train
pictures = torch.stack([scenes[i].image for i in range(4)])  # (4, 3, 64, 64) in [0, 1]
prompts = [scenes[i].caption for i in range(4)]

# %% Winning and losing conditions, (4, 3, 64, 64)
winner = canny.render(canny.detect(pictures))
loser = canny.render(canny.detect(model.sample(prompts, control=winner, seed=0)))

# %% One noised picture for both conditions, and the error of the prediction under each
text, x0 = model.embed(prompts), model.encode(pictures)
torch.manual_seed(0)
noise, t = torch.randn_like(x0), torch.randint(1, 1000, (len(x0),))
x, target = process.add_noise(x0, noise, t), process.target(x0, noise, t)


def error(control: torch.Tensor) -> torch.Tensor:
    """(B,), the mean squared error of the prediction under a condition."""
    return lpo.losses.denoising_error(policy.predict(x, t, Condition(text, control)), target)


policy.freeze_reference()
with policy.reference():
    reference = error(winner), error(loser)
optimizer = torch.optim.AdamW(policy.trainable().values(), lr=1e-5)

# %% Three steps
for step in range(3):
    loss = lpo.losses.cpo(error(winner), error(loser), *reference, t, beta=5000.0, margin=0.01)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step}: loss {loss.item():.5f}")
