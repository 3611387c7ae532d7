"""Fine-tune an export on a labelled corpus and test it on subjects, or sites, that it was not trained on.

python launchers/finetune.py model_dir=DIR corpus_dir=DIR out_dir=DIR label=diagnosis depth=last_layers
"""

import sys

from mcsp.config import FinetuneConfig, parse_command_line


def main() -> None:
    """Parse, fine-tune, print the scores and how much was trained."""
    config, _ = parse_command_line(FinetuneConfig, __doc__ or "")
    from mcsp.evaluate.finetune import finetune  # after parsing: a typing error should not wait for heavy imports
    from mcsp.evaluate.report.tables import interval, overlap_line

    try:
        results = finetune(config)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
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


if __name__ == "__main__":
    main()
