"""Families of published models: tables of their names for our parameters, and their configs."""

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
from megalite.models.families.table import Family

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
