"""Families of published models: tables of their names for our parameters, and their configs."""

from megalite.models.families import (
    baichuan,
    bart,
    bloom,
    chatglm,
    chatglm2,
    falcon,
    gemma2,
    gemma3,
    glm,
    glm4,
    glm130b,
    gpt2,
    gpt_neox,
    gptj,
    internlm2,
    llama,
    mbart,
    mistral,
    moss,
    opt,
    palm,
    pegasus,
    qwen2,
    qwen3,
    t5,
    t5gemma,
)
from megalite.models.families.table import Family

# A model is written as the first that can say all of it; those that transformers has come first.
FAMILIES: dict[str, Family] = {
    module.FAMILY.name: module.FAMILY
    for module in (
        llama,
        mistral,
        qwen2,
        qwen3,
        gemma2,
        gemma3,
        internlm2,
        gpt2,
        gpt_neox,
        gptj,
        opt,
        bloom,
        falcon,
        t5,
        t5gemma,
        bart,
        mbart,
        pegasus,
        glm,
        glm4,
        baichuan,
        moss,
        chatglm,
        chatglm2,
        glm130b,
        palm,
    )
}
