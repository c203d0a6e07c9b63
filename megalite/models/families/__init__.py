"""Families of published models: presets, and tables of their names for our parameters."""

from megalite.models.families import (
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
from megalite.models.families.table import Family, Preset

FAMILIES: dict[str, Family] = {
    module.FAMILY.name: module.FAMILY
    for module in (
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
}
PRESETS: dict[str, Preset] = {
    name: preset for family in FAMILIES.values() for name, preset in family.presets.items()
}
