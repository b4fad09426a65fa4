"""Which class builds which architecture. A new model is its file and one line here (and one in `model_config`, or in
`encoder_config`)."""

from descant_engine.models.bert import BertForSequenceClassification, BertModel
from descant_engine.models.llama import LlamaForCausalLM
from descant_engine.models.qwen2 import Qwen2ForCausalLM
from descant_engine.models.qwen3 import Qwen3ForCausalLM

MODELS: dict[str, type[LlamaForCausalLM]] = {
    "LlamaForCausalLM": LlamaForCausalLM,
    "MistralForCausalLM": LlamaForCausalLM,
    "Qwen2ForCausalLM": Qwen2ForCausalLM,
    "Qwen3ForCausalLM": Qwen3ForCausalLM,
}

ENCODERS: dict[str, type[BertModel]] = {
    "BertModel": BertModel,
    "BertForSequenceClassification": BertForSequenceClassification,
}
