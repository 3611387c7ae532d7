"""Writes the page of all settings from their help texts; the site's configuration calls it before each build."""

from mcsp.commands.settings import default_of, keys_of, kind_of
from mcsp.config import Config, CorpusConfig, EvaluateConfig, ExplainConfig, FinetuneConfig, PretrainConfig

VERBS: dict[str, type[Config]] = {
    "build": CorpusConfig,
    "pretrain": PretrainConfig,
    "evaluate": EvaluateConfig,
    "finetune": FinetuneConfig,
    "explain": ExplainConfig,
}
HEAD = """# Settings

Every command takes its settings from a YAML file (`--config FILE`) and from the command line (`key=value` or
`--key value`); the command line wins. `mcsp VERB --help` prints these texts too.
"""


def page() -> str:
    """The page in Markdown: a table for each command."""
    parts = [HEAD]
    for verb, model in VERBS.items():
        parts.append(f"## mcsp {verb}\n\n| setting | value | default | what it does |\n|---|---|---|---|")
        for key, field, _ in keys_of(model):
            kind, choices = kind_of(field)
            value = ", ".join(f"`{c}`" for c in choices) if choices else kind.lower()
            text = " ".join((field.description or "").split()).replace("|", "\\|")
            parts.append(f"| `{key}` | {value} | `{default_of(field)}` | {text} |")
        parts.append("")
    return "\n".join(parts)
