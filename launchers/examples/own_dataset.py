# %% [markdown]
# Data of your own
#
# A folder of pictures with captions needs no code: `data=folder data.path=<folder>`. Anything else is a class with a
# split for training and one that is held out; an item is a captioned picture.

# %%
from pathlib import Path
from tempfile import mkdtemp

import lpo_platform as lpo

folder = Path(mkdtemp())
(folder / "my_data.py").write_text("""
import torch

from lpo_platform.data.source import Sample


class Split:
    def __init__(self, name, count, resolution):
        self.name, self.count, self.resolution = name, count, resolution
        self.fingerprint = f"stripes-{name}-{count}-{resolution}"

    def __len__(self):
        return self.count

    def caption(self, i):
        return f"stripes of width {2 + i % 6}"

    def __getitem__(self, i):
        place = torch.arange(self.resolution)
        image = (place // (2 + i % 6) % 2).float().expand(3, self.resolution, self.resolution)
        return Sample(id=f"{self.name}-{i}", image=image.clone(), caption=self.caption(i))


class Stripes:
    def __init__(self, count: int = 16, *, resolution: int):
        self.train, self.test = Split("train", count, resolution), Split("test", 8, resolution)
""")
(folder / "conf" / "data").mkdir(parents=True)
(folder / "conf" / "data" / "stripes.yaml").write_text("_target_: my_data.Stripes\ncount: 16\n")

# %% Two steps of supervised training; on the command line:
# lpo-train --config-dir conf method=control data=stripes
run = lpo.train(
    "method=control", "task=canny", "data=stripes", "method.steps=2", "method.batch=2", "callbacks.samples=0",
    "callbacks.sentinel=null", "metrics.num_samples=8", "logger=none", "hardware=cpu",
    folder=folder / "run", config_dir=folder / "conf",
)  # fmt: skip
print(run.table)
