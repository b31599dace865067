"""Which of a checkpoint's defaults for generation are saved with the trained policy? All that transformers saves.

transformers loads a generation_config.json that contradicts itself, such as a temperature without `do_sample: true`,
and refuses to save it: before the weights, so that these would be lost.
"""

from typing import Any

from transformers import GenerationConfig, PreTrainedModel

SAMPLING = ("temperature", "top_p", "min_p", "top_h", "typical_p", "top_k", "epsilon_cutoff", "eta_cutoff")
"""What transformers reads with `do_sample: true` only."""


def make_savable(model: PreTrainedModel) -> None:
    """Change the model's defaults for generation as little as is needed for saving them.

    Where `do_sample` is not given beside a temperature or the like, it was meant: engines sample with these values
    without it. Of the rest what is invalid is left out.
    """
    given = model.generation_config
    if given is None or _is_savable(given):
        return
    wanted: dict[str, Any] = given.to_diff_dict()
    if given.do_sample is None and any(getattr(given, name, None) is not None for name in SAMPLING):
        wanted["do_sample"] = True
    first = ("do_sample", "num_beams", "return_dict_in_generate")  # which make others valid
    kept: dict[str, Any] = {}
    for name in sorted(wanted, key=lambda name: name not in first):
        try:
            valid = _is_savable(type(given)(**kept, **{name: wanted[name]}))
        except ValueError:  # transformers does not make what it calls wrong
            continue
        kept |= {name: wanted[name]} if valid else {}
    model.generation_config = type(given)(**kept)


def _is_savable(defaults: GenerationConfig) -> bool:
    try:
        defaults.validate(strict=True)
    except ValueError:
        return False
    return True
