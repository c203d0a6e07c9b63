"""Published sizes by name: values of a ModelConfig, a file for each family."""

from megalite.models.presets import (
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
from megalite.models.presets.preset import Preset

PRESETS: dict[str, Preset] = {
    name: preset
    for family in (
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
        baichuan,
        moss,
        chatglm,
        chatglm2,
        glm,
        glm4,
        glm130b,
        palm,
    )
    for name, preset in family.PRESETS.items()
}
