"""Published sizes by name: values of a ModelConfig, a file for each family."""

from megalite.models.presets import (
    baichuan,
    bart,
    bloom,
    chatglm,
    chatglm2,
    falcon,
    glm130b,
    gpt2,
    llama,
    moss,
    opt,
    palm,
    t5,
)
from megalite.models.presets.preset import Preset

PRESETS: dict[str, Preset] = {
    name: preset
    for family in (
        llama,
        gpt2,
        opt,
        bloom,
        falcon,
        t5,
        bart,
        baichuan,
        moss,
        chatglm,
        chatglm2,
        glm130b,
        palm,
    )
    for name, preset in family.PRESETS.items()
}
