"""Names of BERT's embeddings in transformers' checkpoints; the rest of BERT is another model's."""

from __future__ import annotations

from locant.checkpoints.names import Layout, Rule

LAYOUTS = (
    Layout(
        "transformers",
        (
            Rule("word_embeddings.*", "bert.embeddings.word_embeddings.*"),
            Rule("token_type_embeddings.*", "bert.embeddings.token_type_embeddings.*"),
            Rule("position.table", "bert.embeddings.position_embeddings.weight"),
            Rule("norm.*", "bert.embeddings.LayerNorm.*"),
        ),
        recomputed=("*position_ids", "*.token_type_ids"),
        elsewhere=("*encoder.*", "*pooler.*", "cls.*", "classifier.*"),
        prefix="bert.",
        rows_method="linear",
    ),
)
