# %% [markdown]
# A reward of your own
#
# A reward is a callable of pictures and prompts. It needs a class in a module that Python finds (installed, in the
# current folder, or beside the folder of options) and a YAML file that names it.

# %%
from pathlib import Path
from tempfile import mkdtemp

import lpo_platform as lpo

folder = Path(mkdtemp())
(folder / "my_rewards.py").write_text("""
class Redness:
    \"\"\"How much red pictures hold beyond green and blue, (B,) in [-1, 1].\"\"\"

    def __call__(self, images, prompts, condition=None):
        red, green, blue = images.mean((2, 3)).unbind(1)
        return red - (green + blue) / 2
""")
(folder / "conf" / "reward").mkdir(parents=True)
(folder / "conf" / "reward" / "redness.yaml").write_text("_target_: my_rewards.Redness\n")

# %% DDPO with it; on the command line: lpo-train --config-dir conf method=ddpo task=none control=none reward=redness
run = lpo.train(
    "experiment=ddpo_toy", "reward=redness", "method.rounds=2", "method.prompts=4", "method.group=2", "method.batch=8",
    "metrics.num_samples=8", "data.num_test=8", "callbacks.samples=0", "callbacks.sentinel=null", "logger=none",
    "hardware=cpu", folder=folder / "run", config_dir=folder / "conf",
)  # fmt: skip
print(run.table)
print("weights:", sorted(path.name for path in run.export.iterdir()))
