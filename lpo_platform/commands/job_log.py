"""What a job prints on the terminal, and how libraries are kept quiet."""

import logging
import sys
import warnings

from lpo_platform.commands.build import log
from lpo_platform.hardware.distributed import lead


def say(text: str) -> None:
    """Prints a line on the terminal and into the log, from the first process only."""
    if not lead():
        return
    log.info(text.strip())
    print(text, file=sys.stderr, flush=True)


def quiet() -> None:
    """Silences what libraries print without a problem."""
    import diffusers
    import huggingface_hub
    import transformers

    huggingface_hub.logging.set_verbosity_error()  # it tells of every retry; the last one ends in our one message
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    diffusers.logging.set_verbosity_error()
    diffusers.logging.disable_progress_bar()
    for name in ("lightning.pytorch", "lightning.fabric", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message="`FluxPosEmbed` is deprecated")  # diffusers warns of its own import
