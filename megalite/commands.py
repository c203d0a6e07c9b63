"""The table of commands: what each is called, where it lives and how it is used."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """One command; its module is imported only when it runs.

    Attributes:
        words: how it is called, such as ``data prepare``.
        target: ``module:ConfigClass``; the module also has ``run(config, launch) -> int``, which
            returns the exit code.
        summary: one line for the help.
        example: arguments that make sense as they are.
    """

    words: str
    target: str
    summary: str
    example: str

    @property
    def is_stage(self) -> bool:
        """Whether it trains, and saves its state when it is asked to stop."""
        return self.target.startswith("megalite.stages.")


COMMANDS: tuple[Command, ...] = (
    Command(
        "tokenizer train",
        "megalite.data.tokenizers.train:TokenizerTrainConfig",
        "train a byte-level BPE tokenizer on text",
        "--source '[\"corpus.jsonl\"]' --vocab_size 8192 --output tokenizer",
    ),
    Command(
        "data prepare",
        "megalite.data.corpus.prepare:PrepareConfig",
        "turn text into a token store (.bin and .idx)",
        "--source '[\"corpus.jsonl\"]' --tokenizer tokenizer --output data/corpus",
    ),
    Command(
        "pretrain",
        "megalite.stages.pretrain:PretrainConfig",
        "train a model on token stores",
        "--data.train '[\"data/corpus\"]' --model.vocab_size 8192 --run.folder runs/pretrain",
    ),
    Command(
        "sft",
        "megalite.stages.sft:SFTConfig",
        "fine-tune a model on conversations",
        "--data.train '[\"sft.jsonl\"]' --checkpoint.start runs/pretrain --run.folder runs/sft",
    ),
    Command(
        "rm",
        "megalite.stages.rm:RMConfig",
        "train a reward model on rankings",
        "--data.train '[\"rankings.jsonl\"]' --checkpoint.start runs/sft --run.folder runs/rm",
    ),
    Command(
        "ppo",
        "megalite.stages.ppo:PPOConfig",
        "align a model with PPO",
        "--data.train '[\"prompts.jsonl\"]' --checkpoint.start runs/sft --reward_model runs/rm "
        "--run.folder runs/ppo",
    ),
    Command(
        "grpo",
        "megalite.stages.grpo:GRPOConfig",
        "align a model with groups of answers: GRPO, Dr. GRPO, RLOO or REINFORCE++",
        "--data.train '[\"prompts.jsonl\"]' --checkpoint.start runs/sft "
        "--reward.function exact_match --run.folder runs/grpo",
    ),
    Command(
        "dpo",
        "megalite.stages.dpo:DPOConfig",
        "align a model with rankings: DPO, IPO, KTO, ORPO or SimPO",
        "--data.train '[\"rankings.jsonl\"]' --checkpoint.start runs/sft --run.folder runs/dpo",
    ),
    Command(
        "generate",
        "megalite.tools.generate:GenerateConfig",
        "answer prompts with a model",
        "--model runs/ppo --tokenizer.path tokenizer --prompt '[\"def add(a, b):\"]'",
    ),
    Command(
        "chat",
        "megalite.tools.chat:ChatConfig",
        "talk with a model in the terminal",
        "--model runs/sft",
    ),
    Command(
        "eval",
        "megalite.tools.eval:EvalConfig",
        "measure a model on held-out text, conversations, rankings or harness tasks",
        "--model runs/sft --rows '[\"heldout.jsonl\"]'",
    ),
    Command(
        "serve",
        "megalite.tools.serve:ServeConfig",
        "serve a model by OpenAI's API",
        "--model runs/sft --port 8000",
    ),
    Command(
        "convert",
        "megalite.tools.convert:ConvertConfig",
        "turn a Hugging Face folder into a checkpoint, or a run into a folder",
        "--source runs/ppo --target exported --tokenizer tokenizer",
    ),
    Command(
        "models",
        "megalite.tools.models:ModelsConfig",
        "list the published sizes that --model.preset knows",
        "--name llama",
    ),
    Command(
        "recipes",
        "megalite.tools.recipes:RecipesConfig",
        "list the published recipes that recipe:NAME stands for",
        "--name llama",
    ),
    Command(
        "plan",
        "megalite.tools.plan:PlanConfig",
        "show what a run needs: memory, time, money, and the fastest layouts that fit",
        "configs/cluster/llama-7b-a100.toml --gpu a100-80gb",
    ),
    Command(
        "demo",
        "megalite.tools.demo:DemoConfig",
        "run all stages on the standard library's source, in ten minutes",
        "--folder runs/demo",
    ),
    Command(
        "report",
        "megalite.tools.report.page:ReportConfig",
        "write one HTML page of the curves and samples of runs",
        '--runs \'["runs/pretrain", "runs/ppo"]\' --output report.html',
    ),
)
