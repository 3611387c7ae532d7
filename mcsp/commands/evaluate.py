"""``mcsp evaluate``, ``finetune`` and ``explain``: an export on labelled recordings."""

from pathlib import Path

from mcsp.commands.settings import takes
from mcsp.config import EvaluateConfig, ExplainConfig, FinetuneConfig

_PLACES = ("model_dir", "corpus_dir", "bids_root")


def _tell_classifier(out_dir: Path) -> None:
    if (out_dir / "classifier").is_dir():
        print(f"predict: mcsp predict {out_dir / 'classifier'} RECORDINGS... --out table.tsv")


@takes(EvaluateConfig, (*_PLACES, "run_dir"))
def evaluate(config: EvaluateConfig) -> int:
    """Evaluate an export on a labelled corpus or BIDS folders: probes beside their baselines, retrieval, one report.

    mcsp evaluate --config evaluate/demo.yaml model_dir=DIR corpus_dir=DIR out_dir=DIR label=diagnosis
    """
    from mcsp.evaluate.evaluate import evaluate as run  # after parsing: a typing error should not wait for its imports
    from mcsp.evaluate.report.tables import terminal_table

    print(terminal_table(run(config)))
    print(f"results: {config.out_dir / 'results.json'}")
    print(f"report:  {config.out_dir / 'report.html'}")
    _tell_classifier(config.out_dir)
    return 0


@takes(FinetuneConfig, _PLACES)
def finetune(config: FinetuneConfig) -> int:
    """Fine-tune an export on a labelled corpus and test it on subjects, or sites, that it was not trained on.

    mcsp finetune model_dir=DIR corpus_dir=DIR out_dir=DIR label=diagnosis depth=last_layers
    """
    from mcsp.evaluate.finetune import finetune as run
    from mcsp.evaluate.report.tables import interval, overlap_line

    results = run(config)
    trained = results["parameters"]
    print(
        f"trained ({config.depth}): {trained['head']:,} parameters of the head and {trained['encoder']:,} of the "
        f"encoder, of {trained['all']:,}"
    )
    for row in results["scores"]:
        main, within = ("R2", "r_sites") if "r2" in row else ("AUROC", "auroc_sites")
        print(f"{row['features']:<12} {main} {interval(row[main.lower()])}, within sites {interval(row[within])}")
    print(f"difference   {interval(results['scores'][0].get('finetuned_minus_frozen'), '+.3f')}")
    print(overlap_line(results))
    print(f"results: {config.out_dir / 'results.json'}")
    _tell_classifier(config.out_dir)
    return 0


@takes(ExplainConfig, (*_PLACES, "finetuned_dir"))
def explain(config: ExplainConfig) -> int:
    """Show the channels and frequency bands that a classifier uses, with controls and pictures.

    mcsp explain model_dir=DIR corpus_dir=DIR out_dir=DIR label=diagnosis [finetuned_dir=DIR]
    """
    from mcsp.explain.explain import explain as run
    from mcsp.explain.report import strongest

    print("\n".join(strongest(run(config))))
    print(f"numbers: {config.out_dir / 'attribution.json'}")
    print(f"report:  {config.out_dir / 'report.html'}")
    return 0
