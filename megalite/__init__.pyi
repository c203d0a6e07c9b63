from megalite.distributed.launch import Launch as Launch
from megalite.errors import MegaliteError as MegaliteError
from megalite.ops import AttentionOptions as AttentionOptions
from megalite.ops import RowIntervals as RowIntervals
from megalite.ops import attention as attention
from megalite.ops import cross_entropy as cross_entropy
from megalite.ops import linear_cross_entropy as linear_cross_entropy
from megalite.ops import norm as norm
from megalite.ops import rope as rope
from megalite.ops import rope_tables as rope_tables
from megalite.tools.calls import LoadedModel as LoadedModel
from megalite.tools.calls import convert as convert
from megalite.tools.calls import evaluate as evaluate
from megalite.tools.calls import generate as generate
from megalite.tools.calls import load_model as load_model
from megalite.tools.calls import load_tokenizer as load_tokenizer
from megalite.tools.calls import prepare_data as prepare_data
from megalite.tools.calls import train as train
from megalite.tools.calls import train_tokenizer as train_tokenizer

__version__: str
